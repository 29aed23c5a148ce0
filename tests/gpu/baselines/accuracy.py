#!/usr/bin/env python3
"""How far bf16 logits are from float32's on one checkpoint: transformers', and ours beside them.

The error at a position is |logits - f32| / |f32| over the vocabulary; teacher-forced.
"""

import argparse
import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from common import Report, parser

Summary = dict[str, float]


def read_ids(path: Path) -> list[int]:
    """1,2,3 or 1 2 3 or a JSON list, or a JSON object with token_ids or ids."""
    text = path.read_text()
    if text.lstrip().startswith("{"):
        named = json.loads(text)
        return list(named["token_ids"] if "token_ids" in named else named["ids"])
    return [int(word) for word in re.findall(r"\d+", text)]


def logits_of(model_dir: Path, ids: list[int], dtype: torch.dtype, attention: str,
              device: str) -> Tensor:
    """[positions, vocabulary] in float32, all arithmetic in `dtype`."""
    began = time.monotonic()
    model = LlamaForCausalLM.from_pretrained(model_dir, dtype=dtype, attn_implementation=attention)
    model = model.to(device).eval()
    found = model(torch.tensor([ids], device=device), use_cache=False).logits[0].float()
    print(f"# transformers, {dtype}, {attention}: {time.monotonic() - began:.1f} s", flush=True)
    return found


def errors(logits: Tensor, exact: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of every position: norm of the difference, norm of the exact logits, same best token."""
    return ((logits - exact).norm(dim=-1), exact.norm(dim=-1),
            logits.argmax(-1) == exact.argmax(-1))


def errors_of_file(path: Path, exact: Tensor, rows: int = 256) -> tuple[Tensor, Tensor, Tensor]:
    ours = np.load(path, mmap_mode="r")
    if ours.dtype != np.dtype("<f4") or ours.shape != tuple(exact.shape):
        raise ValueError(f"{path}: {ours.dtype.str} {ours.shape}, not <f4 {tuple(exact.shape)}")
    parts = [errors(torch.from_numpy(ours[i:i + rows].copy()).to(exact.device), exact[i:i + rows])
             for i in range(0, len(ours), rows)]
    differ, size, same = (torch.cat(column) for column in zip(*parts, strict=True))
    return differ, size, same


def summary(differ: Tensor, size: Tensor, same: Tensor) -> tuple[Summary, Tensor]:
    """Figures over all positions, and the error of each."""
    each = (differ / size).double().cpu()
    whole = float(differ.double().norm() / size.double().norm())
    return {"whole": whole, "median": float(each.median()), "p99": float(each.quantile(0.99)),
            "max": float(each.max()), "top1": float(same.float().mean())}, each


def show(name: str, figures: Summary) -> None:
    print(f"{name:22}" + "".join(f"{v:12.3e}" for k, v in figures.items() if k != "top1")
          + (f"{figures['top1']:10.2%}" if "top1" in figures else ""), flush=True)


def compare(args: argparse.Namespace, report: Report) -> bool:
    """False when our error is beyond what is allowed."""
    ids = read_ids(args.token_ids)[:args.positions]
    sizes = {"model": args.model.name, "positions": len(ids)}
    exact = logits_of(args.model, ids, torch.float32, args.exact_attention, args.device)
    theirs = logits_of(args.model, ids, torch.bfloat16, args.attention, args.device)
    figures, each = summary(*errors(theirs, exact))
    del theirs
    print(f"{'error against float32':22}" + "".join(f"{k:>12}" for k in list(figures)[:-1])
          + "      same best token")
    show("transformers bf16", figures)
    report.add(**sizes, of="transformers", attention=args.attention, status="ok", **figures,
               errors=each.tolist())
    ok = True
    for path in args.ours:
        ours, our_each = summary(*errors_of_file(path, exact))
        ratio = our_each / each
        ratios = {"whole": ours["whole"] / figures["whole"], "median": float(ratio.median()),
                  "p99": float(ratio.quantile(0.99)), "max": float(ratio.max())}
        ok = ok and ratios["whole"] <= args.most
        show(path.name, ours)
        show("  ratio to theirs", ratios)
        report.add(**sizes, of=path.name, status="ok", **ours, ratios=ratios, most=args.most,
                   errors=our_each.tolist(), ratio=ratio.tolist())
    return ok


def main() -> int:
    options = parser(__doc__, seconds=170)
    options.add_argument("model", type=Path, help="folder with config.json and safetensors")
    options.add_argument("token_ids", type=Path, help="file: 1,2,3")
    options.add_argument("--ours", type=Path, nargs="+", default=[], metavar="FILE.npy",
                         help="'<f4', row i = logits after token i")
    options.add_argument("--positions", type=int, help="only the first so many ids")
    options.add_argument("--most", type=float, default=1.2,
                         help="exit 1 if our whole error is over so many times theirs")
    options.add_argument("--attention", default="sdpa", help="of transformers in bf16")
    options.add_argument("--exact-attention", default="eager", help="of transformers in float32")
    args = options.parse_args()
    disable_progress_bar()
    torch.set_float32_matmul_precision("highest")  # no tf32
    torch.backends.cudnn.allow_tf32 = False
    report = Report(args, "accuracy")
    right: list[bool] = []
    done = report.case(lambda: right.append(compare(args, report)), model=args.model.name)
    return 0 if done and all(right) else 1


if __name__ == "__main__":
    with torch.inference_mode():
        sys.exit(main())
