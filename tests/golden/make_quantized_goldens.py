#!/usr/bin/env python3
"""Writes tiny random Llama checkpoints whose matrices are integer or float8 codes, in the layouts
of AWQ, GPTQ, float8 and compressed-tensors checkpoints, and the logits that transformers computes
from the weights that these codes mean.

    python3 -m pip install torch transformers && python3 make_quantized_goldens.py [OUT_DIR]

README.md beside this file says what is in them.
"""

import json
import pathlib
import shutil
import sys
import tempfile

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

CONTEXT = 96
POSITIONS = [0, 1, 3, 7, 20, 31, 63, 64, 80, 95]
HIDDEN, INNER, VOCAB = 64, 96, 96

CASES = {
    "gptq-int4-sym": dict(method="gptq", bits=4, group=32, sym=True, order=False),
    "gptq-int4-act-order": dict(method="gptq", bits=4, group=32, sym=False, order=True),
    "gptq-int8-asym": dict(method="gptq", bits=8, group=-1, sym=False, order=False, v2=True),
    "gptq-int8-act-order": dict(method="gptq", bits=8, group=16, sym=True, order=True, head=True),
    "awq-int4": dict(method="awq", bits=4, group=32, sym=False, skip=["down_proj"],
                     dtype="float16"),
    "fp8-block": dict(method="fp8", block=[32, 32]),
    "fp8-tensor": dict(method="fp8"),
    "compressed-int8": dict(method="compressed", bits=8),
    "compressed-int4": dict(method="compressed", bits=4, group=32),
    "compressed-fp8": dict(method="compressed", bits=0),
}


def make_model(rng):
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        max_position_embeddings=2 * CONTEXT, rms_norm_eps=1e-5, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        attn_implementation="eager", dtype=torch.float16)
    model = transformers.LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        scale = 2 if "embed" in name or "lm_head" in name else 1
        values = rng.uniform(0.5, 1.5, shape) if "norm" in name else \
            rng.normal(0, scale / np.sqrt(shape[1]), shape)
        parameter.data = torch.tensor(values, dtype=torch.float32)
    return model.half().eval()


def pack(codes, bits, axis, order=None):
    """Codes into 32-bit words along an axis; order: the place in a word's bits of each of them."""
    per = 32 // bits
    codes = np.moveaxis(codes.astype(np.uint32), axis, -1)
    codes = codes.reshape(codes.shape[:-1] + (codes.shape[-1] // per, per))
    order = range(per) if order is None else order
    words = np.zeros(codes.shape[:-1], np.uint32)
    for place, which in enumerate(order):
        words |= codes[..., which] << np.uint32(bits * place)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(words, -1, axis)).view(np.int32))


def integers(weight, case, rng):
    """Codes [out, in], scales and zeros [out, groups], the group of each input, the values."""
    out, inputs = weight.shape
    group = inputs if case.get("group", -1) == -1 else case["group"]
    groups = inputs // group
    index = np.arange(inputs) // group
    if case.get("order"):
        index = rng.permutation(index)
    most = 2 ** case["bits"] - 1
    scales, zeros = np.zeros((out, groups), np.float16), np.zeros((out, groups), np.int64)
    for g in range(groups):
        part = weight[:, index == g]
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        if case.get("sym", True):
            high = np.maximum(high, -low)
            low = -high
        scales[:, g] = (high - low) / most
        zeros[:, g] = (most + 1) // 2 if case.get("sym", True) else \
            np.clip(np.round(-low / scales[:, g].astype(np.float32)), 1, most)
    wide = scales.astype(np.float32)[:, index]
    codes = np.clip(np.round(weight / wide) + zeros[:, index], 0, most).astype(np.int64)
    return codes, scales, zeros, index, wide * (codes - zeros[:, index])


def gptq(name, weight, case, rng, tensors):
    codes, scales, zeros, index, values = integers(weight, case, rng)
    tensors[name + ".qweight"] = pack(codes.T, case["bits"], 0)
    tensors[name + ".qzeros"] = pack(zeros.T - (0 if case.get("v2") else 1), case["bits"], 1)
    tensors[name + ".scales"] = torch.from_numpy(np.ascontiguousarray(scales.T))
    tensors[name + ".g_idx"] = torch.from_numpy(index.astype(np.int32))
    tensors[name + ".bias"] = torch.zeros(weight.shape[0], dtype=torch.float16)
    return values


def awq(name, weight, case, rng, tensors):
    codes, scales, zeros, _, values = integers(weight, case, rng)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    tensors[name + ".qweight"] = pack(codes.T, 4, 1, order)
    tensors[name + ".qzeros"] = pack(zeros.T, 4, 1, order)
    tensors[name + ".scales"] = torch.from_numpy(np.ascontiguousarray(scales.T))
    return values


def fp8(name, weight, case, rng, tensors):
    """A scale per block, per row or for the matrix."""
    out, inputs = weight.shape
    rows, cols = case.get("block") or ((1, inputs) if case["method"] == "compressed" else
                                       (out, inputs))
    blocks = np.abs(weight).reshape(out // rows, rows, inputs // cols, cols).max((1, 3))
    scales = torch.from_numpy((blocks / 448).astype(np.float32))
    wide = scales.repeat_interleave(rows, 0).repeat_interleave(cols, 1)
    codes = (torch.from_numpy(weight) / wide).to(torch.float8_e4m3fn)
    tensors[name + ".weight"] = codes
    if case.get("block"):
        tensors[name + ".weight_scale_inv"] = scales
    else:
        tensors[name + ".weight_scale"] = scales if rows == 1 else scales.reshape(())
    return (codes.float() * wide).numpy()


def compressed(name, weight, case, rng, tensors):
    if case["bits"] == 0:
        return fp8(name, weight, case, rng, tensors)
    codes, scales, _, _, values = integers(weight, case, rng)
    if case["bits"] == 4:
        tensors[name + ".weight_packed"] = pack(codes, 4, 1)
        tensors[name + ".weight_shape"] = torch.tensor(weight.shape)
    else:
        tensors[name + ".weight"] = torch.from_numpy((codes - 128).astype(np.int8))
    tensors[name + ".weight_scale"] = torch.from_numpy(scales)
    return values


def config_of(case):
    group = case.get("group", -1)
    if case["method"] == "gptq":
        return {"quant_method": "gptq", "bits": case["bits"], "group_size": group,
                "desc_act": case["order"], "sym": case["sym"], "damp_percent": 0.1,
                "static_groups": False, "true_sequential": True, "model_name_or_path": None,
                "lm_head": bool(case.get("head")),
                "checkpoint_format": "gptq_v2" if case.get("v2") else "gptq"}
    if case["method"] == "awq":
        return {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True,
                "version": "gemm", "backend": "autoawq",
                "modules_to_not_convert": case["skip"]}
    if case["method"] == "fp8":
        return {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3",
                **({"weight_block_size": case["block"]} if case.get("block") else {})}
    floats = case["bits"] == 0
    weights = {"num_bits": case["bits"] or 8, "type": "float" if floats else "int",
               "symmetric": True, "dynamic": False, "group_size": None if group == -1 else group,
               "strategy": "channel" if group == -1 else "group", "actorder": None,
               "observer": "minmax", "observer_kwargs": {}, "block_structure": None}
    formats = {0: "float-quantized", 4: "pack-quantized", 8: "int-quantized"}
    return {"quant_method": "compressed-tensors", "format": formats[case["bits"]],
            "quantization_status": "compressed", "ignore": ["lm_head"], "kv_cache_scheme": None,
            "global_compression_ratio": 1.5,
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights,
                                          "input_activations": None, "output_activations": None}}}


def write_case(path, name, case, rng):
    model = make_model(rng)
    shutil.rmtree(path, ignore_errors=True)
    model.save_pretrained(path)
    plain = load_file(path / "model.safetensors")
    tensors, meant = {}, {}
    write = {"gptq": gptq, "awq": awq, "fp8": fp8, "compressed": compressed}[case["method"]]
    for tensor, value in plain.items():
        module = tensor.removesuffix(".weight")
        if (tensor.endswith("_proj.weight") or (case.get("head") and module == "lm_head")) and \
                not any(module.endswith(skip) for skip in case.get("skip", [])):
            weight = value.float().numpy()
            meant[tensor] = torch.from_numpy(write(module, weight, case, rng, tensors)).float()
        else:
            tensors[tensor] = value
            meant[tensor] = value.float()
    save_file({key: value.contiguous() for key, value in tensors.items()},
              path / "model.safetensors", metadata={"format": "pt"})
    (path / "model.safetensors").chmod(0o644)
    config = json.loads((path / "config.json").read_text())
    config["dtype"] = case.get("dtype", "float32")  # of token rows
    config["quantization_config"] = config_of(case)
    (path / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    return meant


def logits_of(path, meant, ids):
    """float32 arithmetic on the weights that the codes mean."""
    with tempfile.TemporaryDirectory() as plain:
        config = json.loads((path / "config.json").read_text())
        del config["quantization_config"]
        (pathlib.Path(plain) / "config.json").write_text(json.dumps(config))
        save_file(meant, pathlib.Path(plain) / "model.safetensors", metadata={"format": "pt"})
        model = transformers.LlamaForCausalLM.from_pretrained(
            plain, dtype=torch.float32, attn_implementation="eager").eval()
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0].numpy()


def main():
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent
    torch.set_num_threads(1)
    for number, (name, case) in enumerate(CASES.items()):
        rng = np.random.Generator(np.random.PCG64(100 + number))
        path = out / name
        meant = write_case(path, name, case, rng)
        ids = rng.integers(0, VOCAB, CONTEXT).tolist()
        golden = logits_of(path, meant, ids)[POSITIONS].astype("<f4")
        np.save(path / "golden_logits.npy", golden)
        (path / "golden_ids.json").write_text(
            json.dumps({"token_ids": ids, "positions": POSITIONS}) + "\n")
        print(f"{name}: |logit| max {np.abs(golden).max():.2f}, deviation {golden.std():.2f}")


if __name__ == "__main__":
    main()
