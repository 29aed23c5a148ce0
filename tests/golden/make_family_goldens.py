#!/usr/bin/env python3
"""Writes, per family, a tiny config.json and the logits that transformers computes.

    python3 -m pip install torch transformers && python3 make_family_goldens.py [OUT_DIR] [NAME...]

The weights are not kept: Value below makes them, and so does tests/family_checkpoint.cc, from the
tensors' names. README.md beside this file says what is in the folders.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import safetensors.torch
import torch
import transformers

TOKENS = 96
VOCAB = 96
POSITIONS = [0, 1, 5, 23, 24, 25, 40, 63, 64, 80, 95]

BASE = dict(vocab_size=VOCAB, hidden_size=64, intermediate_size=64, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
            rms_norm_eps=1e-5, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            tie_word_embeddings=False)
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
        "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}


def longrope(original):
    return {"rope_type": "longrope", "rope_theta": 10000.0,
            "short_factor": [1.0 + 0.05 * i for i in range(8)],
            "long_factor": [1.5 + 0.9 * i for i in range(8)],
            "original_max_position_embeddings": original}


CASES = {
    "llama-biases": ("Llama", dict(attention_bias=True, mlp_bias=True, head_dim=16)),
    "llama-linear": ("Llama", dict(rope_parameters=LINEAR, head_dim=16)),
    "llama-dynamic": ("Llama", dict(rope_parameters=dict(LINEAR, rope_type="dynamic"))),
    "llama-yarn": ("Llama", dict(rope_parameters=YARN, head_dim=16)),
    "mistral": ("Mistral", dict(sliding_window=24, head_dim=16)),
    "mixtral": ("Mixtral", dict(num_local_experts=5, num_experts_per_tok=2, head_dim=16,
                                num_hidden_layers=2)),
    "qwen2": ("Qwen2", dict(tie_word_embeddings=True)),
    "qwen2-windows": ("Qwen2", dict(use_sliding_window=True, sliding_window=24,
                                    max_window_layers=1)),
    "qwen2-yarn": ("Qwen2", dict(rope_parameters=dict(YARN, attention_factor=1.3))),
    "qwen3": ("Qwen3", dict(head_dim=24, attention_bias=True)),
    "qwen3-moe": ("Qwen3Moe", dict(head_dim=16, num_experts=6, num_experts_per_tok=3,
                                   moe_intermediate_size=24, norm_topk_prob=True,
                                   mlp_only_layers=[1])),
    "qwen3-moe-sums": ("Qwen3Moe", dict(head_dim=16, num_experts=4, num_experts_per_tok=2,
                                        moe_intermediate_size=24, num_hidden_layers=2)),
    "phi3": ("Phi3", dict(sliding_window=24)),
    "phi3-short": ("Phi3", dict(rope_parameters=longrope(128),
                                original_max_position_embeddings=128)),
    "phi3-long": ("Phi3", dict(rope_parameters=longrope(64),
                               original_max_position_embeddings=64)),
}
OLDER = ("mistral", "qwen2", "llama-linear", "phi3-long", "qwen3-moe")  # as transformers 4 wrote


def hashes(name, count):
    """splitmix64 of the name's FNV-1a hash and the index."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(
            0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def values(name, shape):
    """A tensor's values: uniform in [-1, 1) times what its kind asks for, norms around 1.

    Routers decide clearly, as trained ones do: a flip is no rounding error.
    """
    uniform = (hashes(name, int(np.prod(shape))) >> np.uint64(40)).astype(np.float64) / 2**23 - 1
    if len(shape) == 1:
        scaled = 0.4 * uniform + (1 if "norm" in name else 0)
    elif "embed" in name or "lm_head" in name:
        scaled = uniform * (3.0 / np.sqrt(np.float64(shape[-1])))
    elif name.endswith(".gate.weight"):
        scaled = uniform * (9.0 / np.sqrt(np.float64(shape[-1])))
    else:
        scaled = uniform * (1.8 / np.sqrt(np.float64(shape[-1])))
    return torch.tensor(scaled.astype(np.float32)).reshape(tuple(shape))


def to_older_form(config):
    """config.json as transformers before version 5 wrote it."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    if config["model_type"] == "phi3" and config["rope_scaling"]:
        rope["type"] = rope.pop("rope_type")
        rope.pop("original_max_position_embeddings")
    config["torch_dtype"] = config.pop("dtype")
    if config["model_type"] == "qwen3_moe":
        config["num_experts"] = config.pop("num_local_experts")
    config.pop("layer_types", None)


def shapes_of(kind, settings, path):
    """Saves a model as transformers does, and returns its tensors' names and shapes."""
    config = getattr(transformers, kind + "Config")(**{**BASE, **settings})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    with safetensors.safe_open(path / "model.safetensors", "pt") as file:
        return {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}


def logits_of(path, ids, dtype):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double().numpy()


def make(name, out):
    kind, settings = CASES[name]
    ids = (hashes(name, TOKENS) % np.uint64(VOCAB)).astype(int).tolist()
    golden = {"token_ids": ids, "positions": POSITIONS}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        shapes = shapes_of(kind, settings, path)
        (path / "generation_config.json").unlink(missing_ok=True)
        config = json.loads((path / "config.json").read_text())
        if name in OLDER:
            to_older_form(config)
        (path / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
        tensors = {tensor: values(tensor, shape) for tensor, shape in shapes.items()}
        for dtype in (torch.float32, torch.bfloat16):
            stored = {tensor: value.to(dtype).contiguous() for tensor, value in tensors.items()}
            safetensors.torch.save_file(stored, path / "model.safetensors", {"format": "pt"})
            single = logits_of(path, ids, torch.float32)
            rows.append(single[POSITIONS])
            if dtype == torch.bfloat16:
                error = np.abs(logits_of(path, ids, torch.bfloat16) - single)[POSITIONS].max()
                golden["bfloat16_error"] = float(error)
    golden["tensors"] = [[tensor, list(shape)] for tensor, shape in shapes.items()]
    (out / name).mkdir(parents=True, exist_ok=True)
    (out / name / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    (out / name / "golden.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    np.save(out / name / "logits.npy", np.stack(rows).astype("<f4"))
    print(f"{name}: |logit| max {np.abs(rows[0]).max():.2f}, deviation {rows[0].std():.2f}, "
          f"bfloat16 of transformers {golden['bfloat16_error']:.3f}")


def main():
    default = pathlib.Path(__file__).parent / "families"
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    for name in sys.argv[2:] or CASES:
        make(name, out)


if __name__ == "__main__":
    main()
