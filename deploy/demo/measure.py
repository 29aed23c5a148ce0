"""Figures of a model: loss on the held-out text, and how many lookups it gets right."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from lookups import probe_doc
from model import autocast

DISTANCES = (512, 1024, 2048, 4096, 6144, 8100)  # tokens between a lookup's line and its question


def bible_loss(model, corpus, length, device):
    """Mean loss (nats a token) on the held-out blocks, in windows of `length` that begin with BOS."""
    total = count = chars = 0
    with torch.no_grad(), autocast(device):
        for a, b in corpus.val_runs:
            ids = corpus.ids[corpus.start[a]:corpus.start[b]].astype(np.int64)
            for i in range(0, len(ids) - length + 2, length - 1):
                window = np.concatenate([[corpus.bos], ids[i:i + length - 1]])
                x = torch.from_numpy(window)[None].to(device)
                logits = model.logits(model.model(x[:, :-1])).float()
                total += F.cross_entropy(logits[0], x[0, 1:], reduction="sum").item()
                count += x.shape[1] - 1
                chars += len(corpus.tok.decode(window[1:].tolist()))
    if not count:
        return float("nan"), float("nan")
    return total / count, total / math.log(2) / chars


def lookup_accuracy(model, corpus, distance, kind, n, device, seed=7):
    """Share of n questions whose five digits all come out right, taking the likeliest each time."""
    rng = np.random.default_rng([seed, distance])
    docs = [probe_doc(corpus, rng, distance, kind) for _ in range(n)]
    right = 0
    step = max(1, min(n, 131072 // distance))
    with torch.no_grad(), autocast(device):
        for i in range(0, n, step):
            part = docs[i:i + step]
            x = torch.full((len(part), max(map(len, part))), corpus.eos)
            for j, d in enumerate(part):
                x[j, :len(d)] = torch.from_numpy(d)
            h = model.model(x.to(device))
            for j, d in enumerate(part):
                says = model.logits(h[j, len(d) - 6:len(d) - 1]).argmax(-1).cpu()
                right += bool((says == torch.from_numpy(d[-5:])).all())
    return right / n


def report(model, corpus, device, n, distances):
    model.eval()
    figures = {"bible": {}, "lookup": {}}
    for length in (512, 2048, 8192):
        if length <= max(distances) * 2:
            loss, bits = bible_loss(model, corpus, length, device)
            figures["bible"][length] = {"loss": round(loss, 4), "ppl": round(math.exp(loss), 2),
                                        "bits_per_char": round(bits, 4)}
            print("held-out text", length, figures["bible"][length], flush=True)
    for d in distances:
        figures["lookup"][d] = {kind: lookup_accuracy(model, corpus, d, kind, n, device)
                                for kind in ("word", "long", "pair", "held_out_word", "held_out_long")}
        print("lookup", d, figures["lookup"][d], flush=True)
    model.train()
    return figures
