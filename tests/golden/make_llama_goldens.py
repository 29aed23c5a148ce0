#!/usr/bin/env python3
"""Writes tiny random Llama checkpoints and the logits that transformers computes from them.

    python3 -m pip install torch transformers && python3 make_llama_goldens.py [OUT_DIR]

README.md beside this file says what is in them.
"""

import json
import pathlib
import sys

import numpy as np
import torch
import transformers

CONTEXT = 256
POSITIONS = [0, 1, 2, 3, 7, 15, 31, 63, 100, 127, 200, 255]

LLAMA2 = dict(heads=4, kv_heads=4, head_dim=16, layers=2, tied=False,
              rope={"rope_type": "default", "rope_theta": 10000.0})
LLAMA3 = dict(heads=4, kv_heads=2, head_dim=16, layers=2, tied=True,
              rope={"rope_type": "default", "rope_theta": 500000.0})
# An original context of 32 puts all three bands of the scaling among the frequencies used.
LLAMA31 = dict(heads=2, kv_heads=1, head_dim=32, layers=3, tied=True,
               rope={"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0,
                     "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 32})

CASES = {
    "llama2-f32": dict(LLAMA2, dtype=torch.float32),
    "llama2-bf16": dict(LLAMA2, dtype=torch.bfloat16, tied=True),
    "llama3-f32": dict(LLAMA3, dtype=torch.float32),
    "llama3-bf16": dict(LLAMA3, dtype=torch.bfloat16, tied=False, shards=True),
    "llama31-f32": dict(LLAMA31, dtype=torch.float32),
    "llama31-bf16": dict(LLAMA31, dtype=torch.bfloat16, older_form=True),
}


def make_model(case, rng):
    config = transformers.LlamaConfig(
        vocab_size=192, hidden_size=32, intermediate_size=48,
        num_hidden_layers=case["layers"], num_attention_heads=case["heads"],
        num_key_value_heads=case["kv_heads"], head_dim=case["head_dim"],
        max_position_embeddings=2 * CONTEXT, rms_norm_eps=1e-5, rope_parameters=case["rope"],
        tie_word_embeddings=case["tied"], attn_implementation="eager")
    model = transformers.LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        if "norm" in name:
            values = rng.uniform(0.5, 1.5, shape)
        elif "embed" in name or "lm_head" in name:
            values = rng.normal(0, 2 / np.sqrt(shape[1]), shape)  # logits of deviation 2
        elif "q_proj" in name or "k_proj" in name:
            values = rng.normal(0, 1.0 / np.sqrt(shape[1]), shape)  # attention far from uniform
        else:
            values = rng.normal(0, 1 / np.sqrt(shape[1]), shape)
        parameter.data = torch.tensor(values, dtype=torch.float32)
    model.tie_weights()
    return model.to(case["dtype"]).eval()


def to_older_form(path):
    """Rewrites config.json as transformers before version 5 wrote it."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def logits_of(path, ids, dtype):
    """Logits of every position, all arithmetic in `dtype` on the stored weights."""
    model = transformers.LlamaForCausalLM.from_pretrained(
        path, dtype=dtype, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double().numpy()


def main():
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    for number, (name, case) in enumerate(CASES.items()):
        rng = np.random.Generator(np.random.PCG64(number))
        path = out / name
        make_model(case, rng).save_pretrained(
            path, max_shard_size="40KB" if case.get("shards") else "1GB")
        for file in path.glob("*.safetensors"):
            file.chmod(0o644)
        if case.get("older_form"):
            to_older_form(path / "config.json")
        ids = rng.integers(0, 192, CONTEXT).tolist()
        single = logits_of(path, ids, torch.float32)
        double = logits_of(path, ids, torch.float64)
        golden = single[POSITIONS].astype("<f4")
        np.save(path / "golden_logits.npy", golden)
        (path / "golden_ids.json").write_text(
            json.dumps({"token_ids": ids, "positions": POSITIONS}) + "\n")
        top2 = np.sort(golden, axis=1)[:, -2:]
        print(f"{name}: |logit| max {np.abs(golden).max():.2f}, deviation {golden.std():.2f}, "
              f"float32 against float64 max {np.abs(single - double).max():.1e}, "
              f"least top-1 margin {(top2[:, 1] - top2[:, 0]).min():.3f}")


if __name__ == "__main__":
    main()
