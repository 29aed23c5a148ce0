#!/usr/bin/env python3
"""Prefill by transformers' LlamaForCausalLM (sdpa, bf16, random weights): tokens per second.

One prompt, logits of its last position only, K and V kept. Two depths are run; figures for the
model's own 32 layers are worked out from them and called `scaled`.
"""

import argparse
import contextlib
import statistics
import time
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, LlamaForCausalLM

from common import Report, count, counts, parser, release, short

FULL = 32
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SHAPES = {"8b": dict(hidden_size=4096, intermediate_size=14336, num_attention_heads=32,
                     num_key_value_heads=8, head_dim=128, vocab_size=128256),
          "tiny": dict(hidden_size=64, intermediate_size=96, num_attention_heads=4,
                       num_key_value_heads=2, head_dim=16, vocab_size=192)}


def make_model(shape: str, layers: int, device: str) -> LlamaForCausalLM:
    config = LlamaConfig(**SHAPES[shape], num_hidden_layers=layers, rope_parameters=ROPE,
                         max_position_embeddings=131072, tie_word_embeddings=False)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16,
                                                 attn_implementation="sdpa")
    return model.eval()


def flops(model: LlamaForCausalLM, tokens: int) -> float:
    """Of matrix products and causal attention; the head sees one position."""
    config = model.config
    width = config.num_attention_heads * config.head_dim
    weights = sum(p.numel() for p in model.model.layers.parameters())
    attention = 2 * tokens * tokens * width * len(model.model.layers)
    return 2.0 * tokens * weights + attention + 2.0 * config.vocab_size * config.hidden_size


def prefill(model: LlamaForCausalLM, ids: Tensor, chunk: int) -> Tensor:
    """Logits of the last position."""
    cache = DynamicCache(config=model.config)
    for begin in range(0, ids.shape[1], chunk):
        out = model(ids[:, begin:begin + chunk], past_key_values=cache, use_cache=True,
                    logits_to_keep=1)
    return out.logits[0, -1]


def time_prefill(model: LlamaForCausalLM, ids: Tensor, chunk: int, repeats: int) -> list[float]:
    """Seconds of each repeat; `fitting_chunk` was the warm-up."""
    on_device = ids.device.type == "cuda"
    samples = []
    for _ in range(repeats):
        if on_device:
            torch.cuda.synchronize()
        began = time.perf_counter()
        prefill(model, ids, chunk)
        if on_device:
            torch.cuda.synchronize()
        samples.append(time.perf_counter() - began)
    return samples


def fitting_chunk(model: LlamaForCausalLM, ids: Tensor, chunk: int) -> int:
    """The largest chunk, halved from `chunk`, with which the prompt fits in memory."""
    while True:
        try:
            prefill(model, ids, chunk)
            return chunk
        except torch.OutOfMemoryError:
            if chunk <= 1024:
                raise
        release()
        chunk //= 2


def run(args: argparse.Namespace, report: Report, model: LlamaForCausalLM, tokens: int,
        backend: str) -> None:
    every = model.model.layers
    ids = torch.randint(model.config.vocab_size, (1, tokens), device=args.device)
    depths = [args.layers, max(1, args.layers // 2)]
    seconds: list[float] = []
    chosen = sdpa_kernel(BACKENDS[backend]) if backend in BACKENDS else contextlib.nullcontext()
    with chosen:
        chunk = fitting_chunk(model, ids, min(args.chunk or tokens, tokens))
        try:
            for depth in depths:
                model.model.layers = every[:depth]
                model.config.num_hidden_layers = depth
                samples = time_prefill(model, ids, chunk, args.repeats)
                seconds.append(statistics.median(samples))
                report.add(shape=args.shape, tokens=tokens, layers=depth, chunk=chunk, status="ok",
                           backend=backend, seconds_median=seconds[-1], seconds=samples,
                           tokens_per_s=tokens / seconds[-1],
                           tflop_per_s=flops(model, tokens) / seconds[-1] / 1e12)
                print(f"{args.shape:5} {backend:8} {short(tokens):>7} {short(chunk):>7} {depth:7} "
                      f"{seconds[-1]:9.3f} {tokens / seconds[-1]:10.0f} "
                      f"{flops(model, tokens) / seconds[-1] / 1e12:8.0f}", flush=True)
        finally:
            model.model.layers = every
            model.config.num_hidden_layers = len(every)
    if depths[0] == depths[1]:
        return
    layer = (seconds[0] - seconds[1]) / (depths[0] - depths[1])
    scaled = seconds[0] + (FULL - depths[0]) * layer
    report.add(shape=args.shape, tokens=tokens, chunk=chunk, backend=backend, status="ok",
               seconds_layer=layer, scaled_layers=FULL, scaled_seconds=scaled,
               scaled_tokens_per_s=tokens / scaled)
    print(f"{args.shape:5} {backend:8} {short(tokens):>7} {short(chunk):>7}  scaled to {FULL} "
          f"layers: {scaled:.3f} s, {tokens / scaled:.0f} tokens/s; "
          f"{layer * 1e3:.1f} ms a layer", flush=True)


def main() -> None:
    options = parser(__doc__, seconds=120)
    options.add_argument("--shape", choices=SHAPES, default="8b")
    options.add_argument("--layers", type=int, default=8)
    options.add_argument("--tokens", type=counts, default=counts("32K"))
    options.add_argument("--chunk", type=count, default=0,
                         help="tokens a forward; by default all, or as many as fit")
    options.add_argument("--backend", nargs="+", choices=["default", *BACKENDS],
                         default=["default", "cudnn"], help="of SDPA; default: PyTorch chooses")
    options.add_argument("--repeats", type=int, default=3)
    args = options.parse_args()
    torch.manual_seed(0)
    report = Report(args, "prefill")
    model = make_model(args.shape, args.layers, args.device)
    print("shape backend   tokens   chunk  layers   seconds   tokens/s  TFLOP/s", flush=True)
    for tokens in args.tokens:
        for backend in args.backend:
            report.case(partial(run, args, report, model, tokens, backend), shape=args.shape,
                        tokens=tokens, backend=backend)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
