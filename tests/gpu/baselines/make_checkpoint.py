#!/usr/bin/env python3
"""Writes a checkpoint of Llama-3.1-8B's shape with random weights, and token ids for it.

Matrices are normal with deviation 1/sqrt(columns), norms 1 + 0.05 normal, all bf16. The same seed
on the same kind of device gives the same bytes.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

SHARD = 4 * 2**30


@dataclass(frozen=True)
class Shape:
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    dim: int
    vocab: int


SHAPES = {"8b": Shape(4096, 14336, 32, 8, 128, 128256), "tiny": Shape(64, 96, 4, 2, 16, 192)}


def config(shape: Shape, layers: int) -> dict[str, object]:
    """config.json in the form in which Llama-3.1-8B was published."""
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192, "rope_type": "llama3"}
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama",
            "hidden_size": shape.hidden, "intermediate_size": shape.mlp,
            "num_hidden_layers": layers, "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads, "head_dim": shape.dim,
            "vocab_size": shape.vocab, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0, "rope_scaling": scaling, "hidden_act": "silu",
            "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False,
            "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
            "initializer_range": 0.02, "pretraining_tp": 1, "torch_dtype": "bfloat16",
            "use_cache": True}


def sizes(shape: Shape, layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor's name and size, in the order in which they are made."""
    queries, keys = shape.heads * shape.dim, shape.kv_heads * shape.dim
    yield "model.embed_tokens.weight", (shape.vocab, shape.hidden)
    for i in range(layers):
        layer = f"model.layers.{i}"
        yield f"{layer}.input_layernorm.weight", (shape.hidden,)
        yield f"{layer}.self_attn.q_proj.weight", (queries, shape.hidden)
        yield f"{layer}.self_attn.k_proj.weight", (keys, shape.hidden)
        yield f"{layer}.self_attn.v_proj.weight", (keys, shape.hidden)
        yield f"{layer}.self_attn.o_proj.weight", (shape.hidden, queries)
        yield f"{layer}.post_attention_layernorm.weight", (shape.hidden,)
        yield f"{layer}.mlp.gate_proj.weight", (shape.mlp, shape.hidden)
        yield f"{layer}.mlp.up_proj.weight", (shape.mlp, shape.hidden)
        yield f"{layer}.mlp.down_proj.weight", (shape.hidden, shape.mlp)
    yield "model.norm.weight", (shape.hidden,)
    yield "lm_head.weight", (shape.vocab, shape.hidden)


def num_bytes(size: tuple[int, ...]) -> int:
    return 2 * torch.Size(size).numel()


def shards(named: list[tuple[str, tuple[int, ...]]]) -> list[list[tuple[str, tuple[int, ...]]]]:
    """The tensors in order, in runs of at most SHARD bytes."""
    made: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    held = 0
    for name, size in named:
        if made[-1] and held + num_bytes(size) > SHARD:
            made.append([])
            held = 0
        made[-1].append((name, size))
        held += num_bytes(size)
    return made


def values(size: tuple[int, ...], random: torch.Generator) -> torch.Tensor:
    made = torch.randn(size, generator=random, device=random.device)
    return (made / size[1]**0.5 if len(size) == 2 else 1 + 0.05 * made).bfloat16()


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("out", type=Path, help="folder, made if need be")
    options.add_argument("--layers", type=int, default=8)
    options.add_argument("--shape", choices=SHAPES, default="8b")
    options.add_argument("--tokens", type=int, default=1024, help="ids in OUT/token_ids.txt")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = options.parse_args()
    shape, began = SHAPES[args.shape], time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    random = torch.Generator(args.device).manual_seed(args.seed)
    named = list(sizes(shape, args.layers))
    parts = shards(named)
    where: dict[str, str] = {}
    for i, part in enumerate(parts):
        file = f"model-{i + 1:05}-of-{len(parts):05}.safetensors"
        tensors = {name: values(size, random).cpu() for name, size in part}
        save_file(tensors, args.out / file, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file)
    total = sum(num_bytes(size) for _, size in named)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (args.out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    (args.out / "config.json").write_text(json.dumps(config(shape, args.layers), indent=1) + "\n")
    ids = torch.randint(shape.vocab, (args.tokens,), generator=random, device=args.device).tolist()
    (args.out / "token_ids.txt").write_text(",".join(map(str, ids)) + "\n")
    print(f"{args.out}: {args.layers} layers, {total / 1e9:.2f} GB in {len(parts)} files, "
          f"{args.tokens} ids, {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
