#!/usr/bin/env python3
"""Decode attention of one layer: PyTorch's SDPA, and Double Sparsity's pipeline step by step.

Every sequence of the batch has one query token and `context` rows of K and V, bf16. `bytes` is what
a method must read: all rows; or all labels and the selected rows. README.md says more.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from common import Report, Timing, count, counts, measure, parser, reason, short

HEADS = {"8b": (32, 8), "7b": (32, 32)}  # query heads, KV heads
DIM = 128
CACHED = 200e6  # input sets together are larger than this, so that no cache holds them
MOST_SETS = 192

# How one query token's heads share K and V. gqa: the backend's own enable_gqa; rows: a group's
# queries are the query rows of its KV head; view: K and V expanded by strides.
FORMS = {SDPBackend.FLASH_ATTENTION: ("gqa", "rows"), SDPBackend.CUDNN_ATTENTION: ("gqa", "rows"),
         SDPBackend.EFFICIENT_ATTENTION: ("rows", "view"), SDPBackend.MATH: ("rows",)}


@dataclass
class Inputs:
    """One layer of one decode step."""

    q: Tensor  # [batch, KV heads, group, DIM]
    k: Tensor  # [batch, KV heads, context, DIM]
    v: Tensor  # [batch, KV heads, context, DIM]
    labels: Tensor  # [batch, KV heads, context, channels]
    channels: Tensor  # [batch, KV heads, group, channels]: their places in a head
    first: Tensor  # [batch, KV heads, 1, 1]: a head's first row among all


def make_inputs(batch: int, heads: tuple[int, int], context: int, channels: int,
                device: str) -> Inputs:
    queries, kv_heads = heads
    normal = partial(torch.randn, dtype=torch.bfloat16, device=device)
    k = normal(batch, kv_heads, context, DIM)
    chosen = torch.rand(kv_heads, DIM, device=device).argsort(-1)[:, :channels].sort(-1).values
    at = chosen[None, :, None, :]
    heads_before = torch.arange(batch * kv_heads, device=device).view(batch, kv_heads, 1, 1)
    return Inputs(q=normal(batch, kv_heads, queries // kv_heads, DIM), k=k,
                  v=normal(batch, kv_heads, context, DIM),
                  labels=k.gather(-1, at.expand(batch, -1, context, -1)),
                  channels=at.expand(batch, -1, queries // kv_heads, -1).contiguous(),
                  first=heads_before * context)


def dense(x: Inputs, form: str) -> Tensor:
    """[batch, KV heads, group, DIM] or the same values in another shape."""
    batch, kv_heads, group, _ = x.q.shape
    if form == "rows":
        return F.scaled_dot_product_attention(x.q, x.k, x.v)
    if form == "gqa":
        q = x.q.view(batch, kv_heads * group, 1, DIM)
        return F.scaled_dot_product_attention(q, x.k, x.v, enable_gqa=group > 1)
    q = x.q.view(batch * kv_heads, group, 1, DIM)
    k, v = (t.flatten(0, 1)[:, None].expand(-1, group, -1, -1) for t in (x.k, x.v))
    return F.scaled_dot_product_attention(q, k, v)


# The published pipeline, a function a step. `pooled`: one selection per KV head (the maximum over
# its queries) and not one per query head.
def score(x: Inputs, pooled: bool) -> Tensor:
    scores = x.q.gather(-1, x.channels) @ x.labels.mT  # [batch, KV heads, group, context]
    return scores.amax(2, keepdim=True) if pooled else scores


def choose(scores: Tensor, budget: int) -> Tensor:
    return scores.topk(budget, dim=-1, sorted=False).indices  # [batch, KV heads, group|1, budget]


def gather(x: Inputs, chosen: Tensor) -> tuple[Tensor, Tensor]:
    rows = (chosen + x.first).flatten()
    k, v = (t.view(-1, DIM).index_select(0, rows) for t in (x.k, x.v))
    return k.view(*chosen.shape, DIM), v.view(*chosen.shape, DIM)


def attend(x: Inputs, rows: tuple[Tensor, Tensor]) -> Tensor:
    """[batch * KV heads, group or 1, 1 or group, DIM]"""
    selections = rows[0].shape[2]
    k, v = (t.flatten(0, 1) for t in rows)
    q = x.q.flatten(0, 1).view(len(k), selections, -1, DIM)
    return F.scaled_dot_product_attention(q, k, v)


def sparse(x: Inputs, budget: int, pooled: bool) -> Tensor:
    return attend(x, gather(x, choose(score(x, pooled), budget)))


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of the queries [n, DIM] over [context, DIM], in float32."""
    return ((q.float() @ k.float().T) / math.sqrt(DIM)).softmax(-1) @ v.float()


def distance(out: Tensor, want: Tensor) -> float:
    got = out.float().flatten()[:want.numel()]
    return float((got - want.flatten()).norm() / want.norm())


def check_sparse(x: Inputs, budget: int, pooled: bool) -> dict[str, float]:
    """Of the first KV head: the error over what was selected, and how much of that is right."""
    chosen = choose(score(x, pooled), budget)
    label_q = x.q[0, 0].gather(-1, x.channels[0, 0]).float()
    scores = label_q @ x.labels[0, 0].float().T
    want = (scores.amax(0, keepdim=True) if pooled else scores).topk(budget, dim=-1).indices
    ours = chosen[0, 0]
    shared = [float(torch.isin(a, b).float().mean()) for a, b in zip(ours, want, strict=True)]
    queries = x.q[0, 0].view(len(ours), -1, DIM)
    outs = [exact(q, x.k[0, 0, i], x.v[0, 0, i]) for q, i in zip(queries, ours, strict=True)]
    return {"error": distance(attend(x, gather(x, chosen)), torch.stack(outs)),
            "selection_right": min(shared)}


class Case:
    """One shape, batch and context: measures every method and adds a row for each."""

    def __init__(self, args: argparse.Namespace, report: Report, shape: str, batch: int,
                 context: int) -> None:
        self.args, self.report = args, report
        self.batch, self.context = batch, context
        self.sizes = {"shape": shape, "batch": batch, "context": context}
        self.heads, self.rows = HEADS[shape], batch * HEADS[shape][1] * context
        self.kv_bytes = self.rows * 4 * DIM
        self.label_bytes = self.rows * 2 * args.channels
        self.budgets = sorted({-(-context // 16), *(b for b in args.budgets if b < context)})

    def row_bytes(self, budget: int, pooled: bool) -> int:
        heads = self.heads[1] if pooled else self.heads[0]
        return self.batch * heads * budget * 4 * DIM

    def make_sets(self) -> list[Inputs]:
        least = self.label_bytes + self.row_bytes(self.budgets[0], pooled=True)
        most = MOST_SETS if self.args.device == "cuda" else 2
        sets = max(1, min(most, math.ceil(CACHED / least), int(8e9 // self.kv_bytes)))
        return [make_inputs(self.batch, self.heads, self.context, self.args.channels,
                            self.args.device) for _ in range(sets)]

    def add(self, method: str, needed: int, timing: Timing, **fields: Any) -> None:
        self.report.add(**self.sizes, method=method, status="ok", bytes=needed,
                        gb_per_s=needed / timing.seconds / 1e9, **timing.fields(), **fields)

    def run(self) -> None:
        if self.kv_bytes > self.args.memory:
            raise MemoryError(f"K and V need {self.kv_bytes / 1e9:.0f} GB")
        sets = self.make_sets()
        seconds, method = self.run_dense(sets)
        cells = [f"{seconds * 1e6:9.1f} {self.kv_bytes / seconds / 1e9:6.0f} {method:15}"]
        grouped = self.heads[0] > self.heads[1]
        for pooled in (False, True) if grouped else (False,):
            for budget in self.budgets:
                took = self.run_sparse(sets, budget, pooled)
                kind = "kv" if pooled else "q"
                cells.append(f"{kind}{short(budget)} {took * 1e6:.1f}")
        print(f"{self.sizes['shape']:5} {self.batch:5} {short(self.context):>7} "
              f"{cells[0]}  {'  '.join(cells[1:])}", flush=True)

    def run_dense(self, sets: list[Inputs]) -> tuple[float, str]:
        x, best, method = sets[0], math.inf, "none"
        want = exact(x.q[0, 0], x.k[0, 0], x.v[0, 0])
        for backend, forms in FORMS.items():
            for form in forms if self.heads[0] > self.heads[1] else ("rows",):
                name = f"{backend.name.split('_')[0].lower()}/{form}"
                try:
                    with sdpa_kernel(backend):
                        error = distance(dense(x, form), want)
                        calls: list[Callable[[], Any]] = [partial(dense, x, form) for x in sets]
                        timing = measure(calls, self.args.device, give_up=max(3 * best, 5e-4))
                except RuntimeError as failure:
                    self.report.add(**self.sizes, method=f"sdpa {name}",
                                    status=f"failed: {reason(failure)}")
                    continue
                self.add(f"sdpa {name}", self.kv_bytes, timing, error=error)
                if timing.seconds < best and error < 2e-2:
                    best, method = timing.seconds, name
        if method == "none":
            raise RuntimeError("no backend took this case")
        self.report.add(**self.sizes, method="sdpa best", status="ok", which=method,
                        bytes=self.kv_bytes, seconds_median=best,
                        gb_per_s=self.kv_bytes / best / 1e9)
        return best, method

    def run_sparse(self, sets: list[Inputs], budget: int, pooled: bool) -> float:
        device = self.args.device
        sizes = {"budget": budget, "channels": self.args.channels,
                 "selection": "KV head" if pooled else "query head"}
        try:
            checked = check_sparse(sets[0], budget, pooled)
            whole = measure([partial(sparse, x, budget, pooled) for x in sets], device)
            parts = self.steps(sets, budget, pooled) if self.args.steps else {}
        except RuntimeError as failure:
            self.report.add(**self.sizes, method="double sparsity", **sizes,
                            status=f"failed: {reason(failure)}")
            return math.nan
        self.add("double sparsity", self.label_bytes + self.row_bytes(budget, pooled), whole,
                 **sizes, **checked, **parts)
        return whole.seconds


    def steps(self, sets: list[Inputs], budget: int, pooled: bool) -> dict[str, float]:
        """Each step alone, on what the one before it left in memory."""
        scores = [score(x, pooled) for x in sets]
        chosen = [choose(s, budget) for s in scores]
        rows = [gather(x, c) for x, c in zip(sets, chosen, strict=True)]
        calls: dict[str, list[Callable[[], Any]]] = {
            "score": [partial(score, x, pooled) for x in sets],
            "topk": [partial(choose, s, budget) for s in scores],
            "gather": [partial(gather, x, c) for x, c in zip(sets, chosen, strict=True)],
            "attend": [partial(attend, x, r) for x, r in zip(sets, rows, strict=True)]}
        return {f"seconds_{step}": measure(made, self.args.device, budget=0.02).seconds
                for step, made in calls.items()}


def main() -> None:
    options = parser(__doc__, seconds=170)
    options.add_argument("--shapes", type=lambda text: text.split(","), default=["8b", "7b"])
    options.add_argument("--batch", type=counts, default=counts("1,4,16,32"))
    options.add_argument("--context", type=counts, default=counts("2K,8K,32K,64K,128K,256K"))
    options.add_argument("--budgets", type=counts, default=[2048], help="beside context/16")
    options.add_argument("--channels", type=int, default=16, help=f"label channels of {DIM}")
    options.add_argument("--memory", type=count, default=count("60G"), help="most K and V")
    options.add_argument("--no-steps", dest="steps", action="store_false",
                         help="only the pipeline as a whole, not its steps alone")
    args = options.parse_args()
    torch.manual_seed(0)
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # else math copies to float32
    report = Report(args, "attention")
    print("shape batch context   sdpa us   GB/s best            double sparsity, us, by selection "
          "per q or kv head and budget", flush=True)
    for shape in args.shapes:
        for batch in args.batch:
            for context in args.context:
                case = Case(args, report, shape, batch, context)
                report.case(case.run, shape=shape, batch=batch, context=context)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
