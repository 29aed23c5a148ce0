#!/usr/bin/env python3
"""Bytes and FLOPs of one decode step, counted per kernel, and the time below which no step can be.

    tests/gpu/step_bytes.py            two tables in Markdown
    tests/gpu/step_bytes.py --json     every case, kernel by kernel, one JSON object on one line
    tests/gpu/step_bytes.py --help     the rates and the case, all of which may be given

What is counted is what the headers in kernels/ say that an operation reads and writes, with rows and
weights of 16 bits. What one kernel hands to the next costs time only where it does not fit into half of
the L2 cache. A kernel's bound is the longest of its bytes and its FLOPs; kernels follow each other, and
each adds a graph node. Missed rows are waited for; where they were predicted (all of them rightly: it is
a bound), the link works beside the device, but for the first layer.
"""
import argparse
import itertools
import json
import math

MODELS = {  # layers, hidden, MLP width, heads, KV heads, head_dim, vocabulary
    "Llama-3.1-8B": (32, 4096, 14336, 32, 8, 128, 128256),
    "Llama-2-7B": (32, 4096, 11008, 32, 32, 128, 32000),
}
CONTEXTS, BATCHES = [32768, 65536, 131072, 262144], [1, 2, 4, 8, 16, 32]
PLACES = ["dense", "resident", "offload", "offload, predicted", "full offload"]


class Step:
    """The kernels of one step: `batch` sequences of `context` tokens, `rows` attended by each KV head."""

    def __init__(self, model, context, batch, rows, place, hit_rate, o):
        self.o, self.kernels, self.groups = o, [], {}
        self.sparse = place not in ("dense", "full offload")
        L, hidden, width, heads, kv, d, vocab = MODELS[model]
        B, r, S = batch, o.channels, context
        row = 4 * d  # K and V
        small = 4 * B * hidden  # float32 activations, once over
        misses = B * kv * (S if place == "full offload" else rows * (1 - hit_rate))
        hot = min(o.hot_rows * rows, S)

        def product(name, outputs, inputs, count=L):
            self.add(name, "weights", count, read=2 * outputs * inputs, handed=4 * B * (inputs + outputs),
                     tensor=2 * 2 * B * outputs * inputs)  # x is two 16-bit numbers, a product each

        def select(name, count):
            scores = 4 * B * kv * S
            self.add(name + "score labels", "labels, scores", count, read=2 * r * B * kv * S, handed=scores,
                     plain=2 * r * B * heads * S)
            self.add(name + "select", "labels, scores", count, handed=scores + 4 * B * kv * rows)

        def resolve(name, count):  # a map entry is read alone: a sector of 32 bytes
            self.add(name + "resolve", "hot rows", count, read=B * kv * (32 * rows + 8 * hot),
                     written=8 * B * kv * rows, handed=B * kv * (8 + 8 * (1 - hit_rate)) * rows)

        self.add("embed", "small", 1, read=2 * B * hidden, handed=small)
        if place == "offload, predicted":
            sliced = heads * min(2 * r, d)
            self.add("guess input, keep it", "small", L - 1, nodes=2, read=small, written=2 * small, handed=small)
            self.add("predict: norm", "small", L - 1, read=2 * hidden, handed=2 * small)
            product("predict: product", sliced, hidden, L - 1)
            self.add("predict: expand, rotate", "small", L - 1, nodes=2, handed=4 * B * (sliced + 3 * heads * d))
            select("predict: ", L - 1)
            resolve("predict: ", L - 1)
            self.add("stop, forget", "hot rows", L - 1, nodes=2)
        self.add("norm", "small", L, read=2 * hidden, handed=2 * small)
        product("project q, k, v", (heads + 2 * kv) * d, hidden)
        copies = place in ("dense", "resident")  # of the new row: on the device, and in the segment always
        self.add("rotate, append", "small", L, written=B * kv * ((row if copies else 0) + 2 * r * self.sparse),
                 up=B * kv * row, handed=4 * B * d * (2 * heads + 2 * kv))
        if self.sparse:
            select("", L)
        if place.startswith("offload"):
            resolve("", L)
        if "offload" in place:
            self.add("copy rows", "link", L, written=misses * row, link=misses * row,
                     span=B * kv * row * S, whole=place == "full offload")
        if place.startswith("offload"):
            self.add("append to slots", "small", L, written=B * kv * row)
        attended = rows if self.sparse else S
        self.add("attend", "rows", L, read=B * kv * attended * row, tensor=4 * d * B * heads * attended,
                 handed=B * (2 * 4 * heads * d + 4 * kv * attended * self.sparse))
        product("add output", hidden, heads * d)
        self.add("MLP norm", "small", L, read=2 * hidden, handed=2 * small)
        product("gate, up", 2 * width, hidden)
        product("add down", hidden, width)
        self.add("last norm", "small", 1, read=2 * hidden, handed=2 * small)
        product("logits", vocab, hidden, 1)
        self.add("sample", "small", 1, handed=2 * 4 * B * vocab)
        self.add("parameters, fills, notes", "small", 1, nodes=6 if "offload" in place else 2)

        row_sets = {"dense": S, "resident": S, "full offload": 2 * S / L}.get(place, hot)  # per layer and KV head
        maps = (8 * hot + 2 * S) * place.startswith("offload")
        self.memory = L * B * kv * (row_sets * row + maps + 2 * r * S * self.sparse) + 2 * vocab * hidden
        self.memory += sum(k["read"] * k["count"] for k in self.kernels if k["group"] == "weights")
        link = sum(k["seconds"] * k["count"] for k in self.kernels if k["group"] == "link")
        device = sum(self.groups.values()) - link
        # Layer 0 is never predicted. With full offload, the next layer's rows come while this one works.
        ahead = {"offload, predicted": (L - 1) / L, "full offload": 1}.get(place, 0) * link
        self.seconds = max(device, ahead) + link - ahead
        self.dominates = max(self.groups, key=self.groups.get)
        self.case = {"model": model, "context": S, "batch": B, "budget": rows if self.sparse else None,
                     "placement": place, "hit_rate": hit_rate if place.startswith("offload") else None,
                     "nodes": sum(k["nodes"] * k["count"] for k in self.kernels), "device_seconds": device,
                     "link_seconds": link, "step_seconds": self.seconds, "dominates": self.dominates,
                     "device_memory": self.memory, "fits": self.memory <= o.device_bytes}

    def add(self, name, group, count, read=0, written=0, handed=0, link=0, up=0, span=0, whole=False,
            tensor=0, plain=0, nodes=1):
        o = self.o
        missed = handed if handed > o.l2_bytes / 2 else 0  # by the L2 cache
        seconds = max(read / o.read_rate + (written + missed) / o.copy_rate, tensor / o.tensor_flops,
                      plain / o.plain_flops)
        if link:
            # Random rows of up to 1 GiB at one rate, of 8 GiB and more at another; between, by the logarithm.
            spread = min(max(math.log2(span / 2**30) / 3, 0), 1)
            mapped = o.link_near * (o.link_far / o.link_near) ** spread
            seconds = max(seconds, link / (o.link_copy if whole else mapped))
        self.kernels.append({"kernel": name, "group": group, "count": count, "read": read, "written": written,
                             "handed": handed, "link_down": link, "link_up": up, "flops": tensor + plain,
                             "nodes": nodes, "seconds": seconds})
        self.groups[group] = self.groups.get(group, 0) + seconds * count
        self.groups["nodes"] = self.groups.get("nodes", 0) + nodes * count * o.node_us * 1e-6

    def cell(self):
        text = f"{self.seconds * 1e3:.{2 if self.seconds < 0.1 else 0}f}"
        return text if self.case["fits"] else f"({text})"


def size(values):
    unit, name = (1e9, "G") if values >= 1e9 else (1e6, "M") if values >= 1e6 else (1e3, "k")
    return f"{values / unit:.3g} {name}" if values else ""


def print_kernels(o):
    steps = [Step(m, o.context, o.batch, o.budget, "offload, predicted", o.hit_rate, o) for m in MODELS]
    print(f"One call of each kernel: {o.context // 1024}K tokens, batch {o.batch}, budget {o.budget:,}, offloaded, "
          f"hit rate {o.hit_rate:g}, predicted. Bytes that device memory or the link must move.\n")
    print("| kernel | calls |" + "".join(f" {m}: bytes | FLOPs | bound, us |" for m in MODELS))
    print("|---|---|" + "---|---|---|" * len(MODELS))
    for of_models in zip(*(s.kernels for s in steps)):
        if max(k["seconds"] for k in of_models) < 0.5e-6:
            continue
        cells = ""
        for k in of_models:
            moved = k["link_down"] or k["read"] + k["written"] + (k["handed"] if "labels" in k["group"] else 0)
            cells += f" {size(moved)} | {size(k['flops'])} | {k['seconds'] * 1e6:.1f} |"
        print(f"| {of_models[0]['kernel']} | {of_models[0]['count']} |{cells}")


def print_steps(o):
    print("\nBound of one step, ms; in parentheses what the device cannot hold. h: hit rate of hot rows.\n")
    print("| shape | tokens | batch | dense | resident, 2,048 | resident, S/16 "
          f"| offload, 2,048, h {o.hit_rate:g} | the same, predicted | offload, S/16, h 0 | full offload "
          "| dominates: resident; offload (2,048) |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for model, context, batch in itertools.product(MODELS, (32768, 131072, 262144), (1, 8, 32)):
        few, waited, *others = (Step(model, context, batch, rows, place, hit_rate, o) for place, rows, hit_rate in (
            ("resident", 2048, 0), ("offload", 2048, o.hit_rate), ("dense", context, 0),
            ("resident", context // 16, 0), ("offload, predicted", 2048, o.hit_rate),
            ("offload", context // 16, 0), ("full offload", context, 0)))
        cells = [step.cell() for step in (others[0], few, others[1], waited, *others[2:])]
        print(f"| {model} | {context // 1024}K | {batch} | {' | '.join(cells)} | {few.dominates}; {waited.dominates} |")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--json", action="store_true")
    for name, value, what in (
            ("--read-rate", 3.09e12, "bytes/s that a kernel reads from device memory"),
            ("--copy-rate", 3.03e12, "bytes/s read and written by a copy"),
            ("--link-copy", 55e9, "bytes/s of large copies from pinned memory"),
            ("--link-near", 49e9, "bytes/s of mapped 512-byte rows out of 1 GiB"),
            ("--link-far", 17e9, "the same out of 8 GiB"),
            ("--node-us", 0.95, "microseconds that a node of a graph costs"),
            ("--tensor-flops", 7.9e14, "FLOP/s of 16-bit tensor cores"),
            ("--plain-flops", 3.3e13, "float32 operations/s, not fused"),
            ("--l2-bytes", 50 * 2**20, "of the device"),
            ("--device-bytes", 77e9, "of memory that may be used"),
            ("--hit-rate", 0.8, "share of selected rows that are hot"),
            ("--hot-rows", 2, "slots per row of the budget"),
            ("--channels", 8, "of a label"),
            ("--context", 131072, "tokens; of the table of kernels, as batch and budget"),
            ("--batch", 1, ""), ("--budget", 2048, "")):
        p.add_argument(name, type=type(value), default=value, help=f"{what} ({value:g})")
    o = p.parse_args()
    if not o.json:
        print_kernels(o)
        return print_steps(o)
    cases = []
    for model, context, batch, place in itertools.product(MODELS, CONTEXTS, BATCHES, PLACES):
        rows = [context] if place in ("dense", "full offload") else sorted({2048, context // 16})
        rates = [0, o.hit_rate] if place.startswith("offload") else [0]
        for budget, hit_rate in itertools.product(rows, rates):
            one = Step(model, context, batch, budget, place, hit_rate, o)
            cases.append(one.case | {"groups": one.groups, "kernels": one.kernels})
    print(json.dumps({"rates": vars(o), "cases": cases}))


if __name__ == "__main__":
    main()
