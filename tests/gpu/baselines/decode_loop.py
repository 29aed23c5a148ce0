#!/usr/bin/env python3
"""Seconds per decode step of a compiled PyTorch loop, as gpt-fast makes it: Llama, static KV cache.

Random weights, bf16, every sequence at the cache's last position. A few layers are run, and figures
for the model's own depth are worked out from two depths and called `scaled`. README.md says more.
"""

import argparse
import time
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from common import Report, Timing, count, counts, measure, parser, short

CARD = 80e9  # bytes: what a scaled figure's weights and cache are held against


@dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    vocab: int
    theta: float
    dim: int = 128

    def layer_weights(self) -> int:
        qkv = (self.heads + 2 * self.kv_heads) * self.dim
        return self.hidden * (qkv + self.heads * self.dim + 3 * self.mlp)


SHAPES = {"llama-2-7b": Shape(32, 4096, 11008, 32, 32, 32000, 1e4),
          "llama-3.1-8b": Shape(32, 4096, 14336, 32, 8, 128256, 5e5)}
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION,
            "gpt-fast": SDPBackend.MATH}

Cache = tuple[Tensor, Tensor]  # K and V of one layer: [batch, KV heads, context, dim]


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)
        return wide.type_as(x) * self.weight


def linear(inputs: int, outputs: int) -> nn.Linear:
    made = nn.Linear(inputs, outputs, bias=False).requires_grad_(False)
    nn.init.normal_(made.weight, std=inputs**-0.5)
    return made


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Rotary embedding of [batch, 1, heads, dim], neighbours paired, as gpt-fast has it."""
    pairs = x.float().unflatten(-1, (-1, 2))
    a, b, cos, sin = pairs[..., 0], pairs[..., 1], turn[..., 0], turn[..., 1]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2).type_as(x)


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape, width = shape, shape.heads * shape.dim
        self.qkv = linear(shape.hidden, width + 2 * shape.kv_heads * shape.dim)
        self.out = linear(width, shape.hidden)
        self.gate, self.up = (linear(shape.hidden, shape.mlp) for _ in range(2))
        self.down = linear(shape.mlp, shape.hidden)
        self.before_attention, self.before_mlp = Norm(shape.hidden), Norm(shape.hidden)

    def forward(self, x: Tensor, turn: Tensor, position: Tensor, cache: Cache, kind: str) -> Tensor:
        x = x + self.out(self.attention(self.before_attention(x), turn, position, cache, kind))
        h = self.before_mlp(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))

    def attention(self, x: Tensor, turn: Tensor, position: Tensor, cache: Cache,
                  kind: str) -> Tensor:
        shape, batch = self.shape, len(x)
        widths = [n * shape.dim for n in (shape.heads, shape.kv_heads, shape.kv_heads)]
        q, k, v = (t.view(batch, 1, -1, shape.dim) for t in self.qkv(x).split(widths, dim=-1))
        q, k = rotate(q, turn), rotate(k, turn)
        keys, values = cache
        keys[:, :, position] = k.transpose(1, 2)
        values[:, :, position] = v.transpose(1, 2)
        if kind == "none":
            return q.flatten(2)
        group = shape.heads // shape.kv_heads
        if kind == "gpt-fast":  # its own way: a mask over the cache, K and V repeated
            mask = (torch.arange(keys.shape[2], device=x.device) <= position)[None, None, None]
            keys, values = (t.repeat_interleave(group, dim=1) for t in (keys, values))
            y = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=mask)
        else:  # no mask, for the cache is full; a group's queries are the rows of its KV head
            rows = q.view(batch, shape.kv_heads, group, shape.dim)
            y = F.scaled_dot_product_attention(rows, keys, values)
        return y.reshape(batch, 1, -1)


class Llama(nn.Module):
    def __init__(self, shape: Shape, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(shape.vocab, shape.hidden).requires_grad_(False)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(layers))
        self.norm, self.head = Norm(shape.hidden), linear(shape.hidden, shape.vocab)
        self.shape = shape

    def forward(self, tokens: Tensor, position: Tensor, turn: Tensor, caches: list[Cache],
                kind: str) -> Tensor:
        """The next token of every sequence: greedy. As many layers run as there are caches."""
        x = self.embed(tokens)[:, None]
        for layer, cache in zip(self.layers, caches, strict=False):
            x = layer(x, turn, position, cache, kind)
        return self.head(self.norm(x)[:, -1]).argmax(-1)

    def turn(self, position: int, device: str) -> Tensor:
        """Cosine and sine at a position: [dim / 2, 2]."""
        places = torch.arange(0, self.shape.dim, 2, device=device) / self.shape.dim
        angle = position * self.shape.theta**-places
        return torch.stack((angle.cos(), angle.sin()), -1)


@dataclass
class Rest:
    """A step without attention, from two depths: seconds of embedding and head, and of a layer."""

    head: float
    layer: float

    def step(self, layers: int) -> float:
        return self.head + layers * self.layer


class Bench:
    def __init__(self, args: argparse.Namespace, report: Report, name: str) -> None:
        self.args, self.report, self.name, self.shape = args, report, name, SHAPES[name]
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(args.device):
            self.model = Llama(self.shape, args.layers)
        torch.set_default_dtype(torch.float32)
        self.compiled = torch.compile(self.model, fullgraph=True)
        self.rest: dict[int, Rest] = {}

    def cache_bytes(self, batch: int, context: int, layers: int) -> int:
        return layers * batch * context * self.shape.kv_heads * self.shape.dim * 4

    def time(self, batch: int, context: int, layers: int, kind: str) -> tuple[Timing, float]:
        """A step's time, and how long compiling and the first calls took."""
        shape, device = self.shape, self.args.device
        make = partial(torch.randn, batch, shape.kv_heads, context, shape.dim,
                       dtype=torch.bfloat16, device=device)
        caches = [(make(), make()) for _ in range(layers)]
        if kind in ("flash", "cudnn"):  # no generated code of theirs depends on the context
            for t in (t for pair in caches for t in pair):
                torch._dynamo.maybe_mark_dynamic(t, 2)
        tokens = torch.randint(shape.vocab, (batch,), device=device)
        position = torch.tensor([context - 1], device=device)
        turn = self.model.turn(context - 1, device)
        step = partial(self.compiled, tokens, position, turn, caches, kind)
        began = time.monotonic()
        with sdpa_kernel(BACKENDS.get(kind, SDPBackend.MATH)):
            step()
            compiled = time.monotonic() - began
            return measure([step], device, budget=0.15), compiled

    def time_rest(self, batch: int) -> None:
        layers, fewer = self.args.layers, max(1, self.args.layers // 4)
        deep, compiled = self.time(batch, 1024, layers, "none")
        shallow, _ = self.time(batch, 1024, fewer, "none")
        layer = (deep.seconds - shallow.seconds) / (layers - fewer)
        rest = Rest(deep.seconds - layers * layer, layer)
        self.rest[batch] = rest
        self.report.add(model=self.name, batch=batch, attention="none", layers=layers, status="ok",
                        shallow_layers=fewer, shallow_seconds=shallow.seconds, tuned=self.args.tune,
                        seconds_head=rest.head, seconds_layer=layer, compile_seconds=compiled,
                        **deep.fields(),
                        weights_gb_per_s=2 * self.shape.layer_weights() / layer / 1e9)

    def run(self, batch: int, context: int, kind: str) -> None:
        args, rest, full = self.args, self.rest[batch], self.shape.layers
        needed = self.cache_bytes(batch, context, args.layers)
        if needed > args.memory:
            raise MemoryError(f"the cache of {args.layers} layers needs {needed / 1e9:.0f} GB")
        timing, compiled = self.time(batch, context, args.layers, kind)
        attention = (timing.seconds - rest.step(args.layers)) / args.layers
        scaled = rest.step(full) + full * attention
        share, scaled_share = attention * args.layers / timing.seconds, full * attention / scaled
        whole = self.cache_bytes(batch, context, full) + 2 * full * self.shape.layer_weights()
        self.report.add(model=self.name, batch=batch, context=context, attention=kind, status="ok",
                        layers=args.layers, **timing.fields(), compile_seconds=compiled,
                        tuned=args.tune, seconds_attention_layer=attention, attention_share=share,
                        attention_gb_per_s=self.cache_bytes(batch, context, 1) / attention / 1e9,
                        scaled_layers=full, scaled_seconds=scaled,
                        scaled_attention_share=scaled_share, scaled_tokens_per_s=batch / scaled,
                        scaled_fits_card=whole < CARD)
        print(f"{self.name:12} {kind:8} {batch:5} {short(context):>7} {timing.seconds * 1e3:9.3f} "
              f"{share:6.0%} {attention * 1e6:9.1f} {scaled * 1e3:9.2f} {scaled_share:6.0%} "
              f"{batch / scaled:9.1f} {'' if whole < CARD else '(over 80 GB)':12} {compiled:5.0f}",
              flush=True)


def main() -> None:
    options = parser(__doc__, seconds=160)
    options.add_argument("--model", choices=SHAPES, nargs="+", default=["llama-2-7b"])
    options.add_argument("--layers", type=int, default=8, help="layers that are run (default 8)")
    options.add_argument("--attention", choices=BACKENDS, nargs="+", default=["flash"],
                         help="gpt-fast: its own, masked, as generated code: compiles per context")
    options.add_argument("--batch", type=counts, default=counts("1,4,8,16,32"))
    options.add_argument("--context", type=counts, default=counts("2K,16K,32K,64K,128K"))
    options.add_argument("--memory", type=count, default=count("60G"), help="most bytes of cache")
    options.add_argument("--tune", action="store_true",
                         help="inductor's coordinate descent, which gpt-fast sets: minutes a batch")
    args = options.parse_args()
    torch.manual_seed(0)
    torch._dynamo.config.automatic_dynamic_shapes = False
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 1000
    torch._functorch.config.enable_autograd_cache = False  # its key leaves the SDPA backend out
    torch._inductor.config.coordinate_descent_tuning = args.tune
    report = Report(args, "decode_loop")
    print(f"# {args.layers} layers are run; scaled: worked out for the model's own depth\n"
          "model        attend   batch context   step ms  share  us/layer "
          "scaled ms  share   tokens/s              compile s", flush=True)
    for name in args.model:
        bench = Bench(args, report, name)
        for batch in args.batch:
            if not report.case(partial(bench.time_rest, batch), model=name, batch=batch):
                continue
            for kind in args.attention:
                for context in args.context:
                    report.case(partial(bench.run, batch, context, kind), model=name,
                                batch=batch, context=context, attention=kind)


if __name__ == "__main__":
    with torch.no_grad():
        main()
