#!/usr/bin/env python3
"""Makes the demo checkpoint: a small Llama with grouped-query attention that looks keys up.

The model is a 7-million-parameter LlamaForCausalLM (8 layers, hidden size 256, 8 query heads and
2 KV heads of 64, vocabulary 4096, context 8192), written as config.json, model.safetensors
(bfloat16), tokenizer.json, tokenizer_config.json and generation_config.json.

It is trained on two things at once:

  * the King James Bible, as printed by Debian's package `bible-kjv`
    (`bible -f Gen1:1-Rev22:21`; the text is in the public domain outside the United Kingdom);
  * key lookups made on the fly: lines of the form

        The number of lamp is 48213.

    strewn over pages of that text, or packed one after another, and asked for again later by
    repeating the line: after `The number of lamp is` the model has to say ` 48213`.

Steps, each a subcommand:

    python3 -m venv venv && venv/bin/pip install numpy torch tokenizers safetensors
    apt-get install bible-kjv                        # or give --text FILE everywhere
    venv/bin/python train.py tokenizer --out .       # seconds, CPU
    venv/bin/python train.py train --out . --minutes 5     # one GPU
    venv/bin/python train.py eval --out .            # figures again, from the files

`train` works against the clock: --minutes is the length of the whole run, and the learning rate,
the stages (context 512, 2048, 8192) and the end follow from it. `--resume DIR` starts from the
model.safetensors in DIR with a fresh optimiser. `--smoke` is a toy run for a CPU that only
shows that everything works.

The shipped files came from two runs on one NVIDIA H100 (PyTorch 2.11), 7 minutes in all, 380 M
tokens: perplexity 16.6 on held-out text, lookups 98 to 100 % right at up to 8100 tokens back.
README.md has the particulars and the figures, training_log.json the numbers.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time

import numpy as np

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
VOCAB = 4096
CONTEXT = 8192
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": CONTEXT,
    "rope_theta": 500000.0,
    "rope_scaling": None,
    "rms_norm_eps": 1e-05,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
    "use_cache": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
}

# Pre-tokenizer of Llama 3. Digits come alone in the end, because the BPE is trained without any.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
         r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")

# What a token counts for in the loss, by its class.
NONE, TEXT, TEMPLATE, ANSWER, KEY = 0, 1, 2, 3, 4
LOSS_WEIGHT = [0.0, 1.0, 0.3, 1.5, 0.1]


# ------------------------------------------------------------------------------------ text

def bible_text(path):
    """The whole book, one verse a line, each headed by its reference (`Ge1:1 In the ...`)."""
    if path:
        with open(path, encoding="utf-8") as f:
            return f.read()
    run = subprocess.run(["bible", "-f", "Gen1:1-Rev22:21"], stdout=subprocess.PIPE, check=True)
    return run.stdout.decode("utf-8")


def make_tokenizer(text, out):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[BOS, EOS], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    # Without the references there is no digit in the text, hence no merge of digits.
    prose = [line.split(" ", 1)[1] + "\n" for line in text.splitlines()]
    tok.train_from_iterator(prose, trainer)
    bos = tok.token_to_id(BOS)
    tok.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos)])
    assert tok.get_vocab_size() == VOCAB
    assert (bos, tok.token_to_id(EOS)) == (CONFIG["bos_token_id"], CONFIG["eos_token_id"])
    tok.save(os.path.join(out, "tokenizer.json"))
    write_json(os.path.join(out, "tokenizer_config.json"), {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
    })


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2)
        f.write("\n")


# ------------------------------------------------------------------------------------ data

class Corpus:
    """Token ids of the book by verse, of the lookup lines' pieces, and of the words for keys."""

    def __init__(self, text, tokenizer_path):
        from tokenizers import Tokenizer

        self.tok = Tokenizer.from_file(tokenizer_path)
        enc = lambda s: self.tok.encode(s, add_special_tokens=False).ids
        one = lambda s: self._single(enc(s), s)
        self.bos, self.eos = self.tok.token_to_id(BOS), self.tok.token_to_id(EOS)

        lines = [line + "\n" for line in text.splitlines()]
        verses = [np.array(e.ids, np.int16)
                  for e in self.tok.encode_batch(lines, add_special_tokens=False)]
        self.start = np.concatenate([[0], np.cumsum([len(v) for v in verses])])  # verse -> offset
        self.ids = np.concatenate(verses)
        # The book falls into 100 blocks of verses; blocks 10, 30, 50, 70 and 90 are held out.
        edge = [len(lines) * i // 100 for i in range(101)]
        self.val_runs = [(edge[b], edge[b + 1]) for b in (10, 30, 50, 70, 90)]
        cuts = [0] + [e for run in self.val_runs for e in run] + [len(lines)]
        self.train_runs = list(zip(cuts[0::2], cuts[1::2]))

        # The pieces of a lookup line. Pre-tokenisation splits exactly between them.
        self.head = np.array(enc("The number of"))
        self.is_ = one(" is")
        self.space = one(" ")
        self.digit = np.array([one(str(d)) for d in range(10)])
        self.stop = one(".\n")
        # Keys: words of the book, of one token or of two to three. Every tenth is never trained on.
        words = {}
        for word in text.split():
            if word.isalpha() and word.isascii() and 4 <= len(word) <= 14 and word != "number":
                words[word] = words.get(word, 0) + 1
        rows = [enc(" " + w) for w in sorted(words) if words[w] >= 3]
        rows = [(r + [-1, -1])[:3] for r in rows if len(r) <= 3]
        trained = np.array([r for n, r in enumerate(rows) if n % 10 != 0])
        held_out = np.array([r for n, r in enumerate(rows) if n % 10 == 0])
        self.keys = {"word": trained[trained[:, 1] < 0], "long": trained[trained[:, 1] >= 0],
                     "held_out_word": held_out[held_out[:, 1] < 0],
                     "held_out_long": held_out[held_out[:, 1] >= 0]}
        self._check(enc)

    @staticmethod
    def _single(ids, what):
        assert len(ids) == 1, f"{what!r} is {len(ids)} tokens"
        return ids[0]

    def _check(self, enc):
        """What is put together from pieces is what the tokenizer makes of the text."""
        vocab = self.tok.get_vocab()
        assert not [t for t in vocab if sum(c.isdigit() for c in t) > 1 and t not in (BOS, EOS)]
        rng = np.random.default_rng(0)
        for make in (lambda: lookup_doc(self, rng, 400), lambda: strewn_doc(self, rng, 900, 5, 1.0),
                     lambda: probe_doc(self, rng, 600, "long")):
            got = make()
            ids = (got[0] if isinstance(got, tuple) else got).tolist()
            ids = [i for i in ids if i not in (self.bos, self.eos)]
            text = self.tok.decode(ids)
            cut = max(i for i, t in enumerate(ids) if "\n" in self.tok.decode([t])) + 1
            whole = self.tok.decode(ids[:cut])
            assert enc(whole) == ids[:cut], (text, ids)


def draw_keys(c, rng, n, kind="mixed"):
    """At most n distinct keys, each a row of up to three tokens, filled up with -1.

    Kinds: those of Corpus.keys, `pair` (two words), `mixed` (some of all that are trained on).
    """
    pool = c.keys[kind if kind in c.keys else "word"]
    n = min(n, len(pool))
    keys = pool[rng.choice(len(pool), n, replace=False)].copy()
    u = rng.random(n) if kind == "mixed" else np.full(n, 0.0 if kind == "pair" else 1.0)
    pair, long = np.flatnonzero(u < 0.15), np.flatnonzero((u >= 0.15) & (u < 0.4))
    keys[pair, 1] = pool[rng.integers(0, len(pool), len(pair)), 0]
    keys[long] = c.keys["long"][rng.choice(len(c.keys["long"]), len(long), replace=False)]
    return keys


def draw_digits(rng, n):
    d = rng.integers(0, 10, (n, 5))
    d[:, 0] = rng.integers(1, 10, n)
    return d


def build_lines(c, keys, digits, asked, follow):
    """Lookup lines as one run of tokens: ids, loss classes, and the length of each line.

    Unless `follow`, the model does not learn to begin such a line by itself.
    """
    n = len(keys)
    h = len(c.head)
    ids = np.empty((n, h + 11), np.int16)
    ids[:, :h] = c.head
    ids[:, h:h + 3] = keys
    ids[:, h + 3] = c.is_
    ids[:, h + 4] = c.space
    ids[:, h + 5:h + 10] = c.digit[digits]
    ids[:, h + 10] = c.stop
    cls = np.full(ids.shape, TEMPLATE, np.uint8)
    cls[:, 0] = TEMPLATE if follow else NONE
    cls[:, h:h + 3] = KEY                                         # which key comes is chance
    cls[:, h + 5:h + 10] = np.where(asked, ANSWER, NONE)[:, None]     # so is a number told first
    keep = ids >= 0
    return ids[keep], cls[keep], keep.sum(1)


def first_seen(order):
    """For a sequence of key numbers: True where that key was there before."""
    _, first = np.unique(order, return_index=True)
    asked = np.ones(len(order), bool)
    asked[first] = False
    return asked


def log_uniform(rng, lo, hi):
    return int(round(math.exp(rng.uniform(math.log(lo), math.log(max(lo, hi))))))


def lookup_doc(c, rng, length):
    """Nothing but lookup lines: told at random and again, or all told first and then asked."""
    n = max(2, (length - 2) // (len(c.head) + 9))
    keys = draw_keys(c, rng, log_uniform(rng, 2, max(2, n // 2)), "mixed" if rng.random() < 0.6 else "word")
    p = len(keys)
    if rng.random() < 0.5:
        order = rng.integers(0, p, n)
    else:
        order = np.concatenate([rng.permutation(p), rng.integers(0, p, max(0, n - p))])
    ids, cls, _ = build_lines(c, keys[order], draw_digits(rng, p)[order], first_seen(order), True)
    cls[0] = NONE
    return (np.concatenate([[c.bos], ids, [c.eos]]).astype(np.int16),
            np.concatenate([[NONE], cls, [TEMPLATE]]).astype(np.uint8))


def verse_window(c, rng, runs, budget):
    """A stretch of whole verses v0..v1 within one run, of at most `budget` tokens."""
    lens = np.array([b - a for a, b in runs], float)
    a, b = runs[rng.choice(len(runs), p=lens / lens.sum())]
    v0 = int(rng.integers(a, b))
    v1 = int(np.searchsorted(c.start, c.start[v0] + budget, side="right")) - 1
    return v0, min(max(v1, v0), b)


def strew(c, v0, hay, slots, lines, line_len, line_cls, text_cls):
    """The tokens `hay` of verses from v0 on, with line i put before verse v0 + slots[i]; slots ascend."""
    ids, cls, at = [], [], 0
    ends = np.cumsum(line_len)[:-1]
    cuts = c.start[v0 + np.asarray(slots, int)] - c.start[v0]
    for cut, line, of_line in zip(cuts, np.split(lines, ends), np.split(line_cls, ends)):
        ids += [hay[at:cut], line]
        cls += [np.full(cut - at, text_cls, np.uint8), of_line]
        at = cut
    ids.append(hay[at:])
    cls.append(np.full(len(hay) - at, text_cls, np.uint8))
    return np.concatenate(ids), np.concatenate(cls)


def strewn_doc(c, rng, length, most_keys, text_share):
    """A stretch of the book with lookup lines between the verses and a block of them at its end.

    Only a share of these documents trains the text itself: the book is short, and the lookups
    need many more tokens than it can be shown without learning it by heart.
    """
    text_cls = TEXT if rng.random() < text_share else NONE
    n_keys = log_uniform(rng, 1, most_keys)
    keys = draw_keys(c, rng, n_keys)
    order = np.concatenate([np.arange(n_keys), rng.integers(0, n_keys, rng.integers(0, n_keys + 1))])
    tail = rng.permutation(n_keys)[:24]
    if text_cls == TEXT and rng.random() < 0.5:
        order, tail = order[:0], tail[:0]
    line = len(c.head) + 9
    v0, v1 = verse_window(c, rng, c.train_runs, max(64, length - 2 - (len(order) + len(tail)) * line))
    slots = np.sort(rng.integers(0, v1 - v0 + 1, len(order)))
    if rng.random() < 0.25:                       # all told at the very beginning
        slots = np.sort(slots * (np.arange(len(order)) >= n_keys))
    else:
        order = rng.permutation(order)
    order, slots = np.concatenate([order, tail]), np.concatenate([slots, np.full(len(tail), v1 - v0)])
    order, slots = order.astype(int), slots.astype(int)
    ids = c.ids[c.start[v0]:c.start[v1]]
    if text_cls == NONE and rng.random() < 0.4:   # in other hay too: each token stands for another
        ids = (rng.permutation(VOCAB - 2) + 2).astype(np.int16)[ids - 2]
    cls = np.full(len(ids), text_cls, np.uint8)
    if len(order):
        told, of_told, n = build_lines(c, keys[order], draw_digits(rng, n_keys)[order], first_seen(order), False)
        ids, cls = strew(c, v0, ids, slots, told, n, of_told, text_cls)
    return (np.concatenate([[c.bos], ids, [c.eos]]).astype(np.int16),
            np.concatenate([[NONE], cls, [TEMPLATE]]).astype(np.uint8))


def probe_doc(c, rng, distance, kind, others=15):
    """One question about a line told about `distance` tokens earlier, and its answer at the end.

    The line comes first, then verses with `others` such lines about other keys among them.
    Returns the ids, which end with the five digits of the answer.
    """
    line = len(c.head) + 9
    others = min(others, max(1, distance // (3 * line)))
    keys = draw_keys(c, rng, others + 1, kind)
    digits = draw_digits(rng, others + 1)
    v0, v1 = 0, 0
    budget = distance - (others + 1) * line
    for _ in range(1000):
        v0, v1 = verse_window(c, rng, c.val_runs, budget)
        if c.start[v1] - c.start[v0] > budget - 100:
            break
    slots = np.concatenate([[0], np.sort(rng.integers(0, v1 - v0 + 1, others)), [v1 - v0]])
    order = np.concatenate([np.arange(others + 1), [0]])
    ids, cls, n = build_lines(c, keys[order], digits[order], first_seen(order), False)
    ids, _ = strew(c, v0, c.ids[c.start[v0]:c.start[v1]], slots, ids, n, cls, TEXT)
    return np.concatenate([[c.bos], ids[:-1]]).astype(np.int64)


class Rows:
    """Endless batches of (ids, classes), each batch x (length + 1), documents packed in rows."""

    def __init__(self, corpus, stage, seed, batch):
        self.c, self.s, self.seed, self.batch = corpus, stage, seed, batch

    def row(self, rng):
        want, ids, cls, have = self.s["length"] + 1, [], [], 0
        while have < want:
            length = want - have
            if length > 256 and rng.random() < 0.3:
                length = int(rng.integers(length // 4, length))
            if rng.random() < self.s["lookup_share"]:
                i, k = lookup_doc(self.c, rng, length)
            else:
                i, k = strewn_doc(self.c, rng, length, self.s["most_keys"], self.s["text_share"])
            ids.append(i)
            cls.append(k)
            have += len(i)
        return np.concatenate(ids)[:want], np.concatenate(cls)[:want]

    def __iter__(self):
        import torch
        from torch.utils.data import get_worker_info

        info = get_worker_info()
        rng = np.random.default_rng([*self.seed, info.id if info else 0])
        while True:
            rows = [self.row(rng) for _ in range(self.batch)]
            yield (torch.from_numpy(np.stack([r[0] for r in rows])),
                   torch.from_numpy(np.stack([r[1] for r in rows])))


def batches(corpus, stage, seed, batch, workers, pin):
    from torch.utils.data import DataLoader, IterableDataset

    class Data(IterableDataset):
        def __iter__(self):
            return iter(Rows(corpus, stage, seed, batch))

    return iter(DataLoader(Data(), batch_size=None, num_workers=workers, pin_memory=pin,
                           prefetch_factor=4 if workers else None))


# ----------------------------------------------------------------------------------- model

def build_model(config, dropout=0.0):
    """Llama, with the tensor names of its Hugging Face layout."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    hidden, heads, kv_heads, hd = (config["hidden_size"], config["num_attention_heads"],
                                   config["num_key_value_heads"], config["head_dim"])

    class RMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(hidden))

        def forward(self, x):
            y = x.float()
            y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"])
            return (y * self.weight).to(x.dtype)

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj = nn.Linear(hidden, heads * hd, bias=False)
            self.k_proj = nn.Linear(hidden, kv_heads * hd, bias=False)
            self.v_proj = nn.Linear(hidden, kv_heads * hd, bias=False)
            self.o_proj = nn.Linear(heads * hd, hidden, bias=False)

        def forward(self, x, cos, sin):
            b, t, _ = x.shape
            q = self.q_proj(x).view(b, t, heads, hd).transpose(1, 2)
            k = self.k_proj(x).view(b, t, kv_heads, hd).transpose(1, 2)
            v = self.v_proj(x).view(b, t, kv_heads, hd).transpose(1, 2)

            def rope(u):
                half = torch.cat((-u[..., hd // 2:], u[..., :hd // 2]), -1)
                return (u * cos + half * sin).to(v.dtype)

            group = heads // kv_heads
            y = F.scaled_dot_product_attention(rope(q), rope(k).repeat_interleave(group, 1),
                                               v.repeat_interleave(group, 1), is_causal=True)
            return self.o_proj(y.transpose(1, 2).reshape(b, t, heads * hd))

    class MLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_proj = nn.Linear(hidden, config["intermediate_size"], bias=False)
            self.up_proj = nn.Linear(hidden, config["intermediate_size"], bias=False)
            self.down_proj = nn.Linear(config["intermediate_size"], hidden, bias=False)

        def forward(self, x):
            return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.self_attn = Attention()
            self.mlp = MLP()
            self.input_layernorm = RMSNorm()
            self.post_attention_layernorm = RMSNorm()

        def forward(self, x, cos, sin):
            x = x + F.dropout(self.self_attn(self.input_layernorm(x), cos, sin), dropout, self.training)
            return x + F.dropout(self.mlp(self.post_attention_layernorm(x)), dropout, self.training)

    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed_tokens = nn.Embedding(config["vocab_size"], hidden)
            self.layers = nn.ModuleList(Layer() for _ in range(config["num_hidden_layers"]))
            self.norm = RMSNorm()

        def forward(self, ids):
            inv = config["rope_theta"] ** (-torch.arange(0, hd, 2, device=ids.device).float() / hd)
            angle = torch.arange(ids.shape[1], device=ids.device).float()[:, None] * inv
            angle = torch.cat((angle, angle), -1)
            cos, sin = angle.cos(), angle.sin()
            x = self.embed_tokens(ids)
            for layer in self.layers:
                x = layer(x, cos, sin)
            return self.norm(x)

    class Llama(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = Body()
            for name, p in self.named_parameters():
                if p.dim() == 2:
                    std = config["initializer_range"]
                    if name.endswith(("o_proj.weight", "down_proj.weight")):
                        std /= math.sqrt(2 * config["num_hidden_layers"])
                    nn.init.normal_(p, 0.0, std)

        def logits(self, x):
            return F.linear(x, self.model.embed_tokens.weight.to(x.dtype))

        def forward(self, ids, cls, weight):
            """Weighted loss over ids[:, 1:], and the sums and counts of each class's loss."""
            logits = self.logits(self.model(ids[:, :-1])).float().flatten(0, 1)
            cls = cls[:, 1:].flatten()
            ce = F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
            w = weight[cls]
            of = torch.stack([torch.stack([(ce * (cls == k)).sum(), (cls == k).sum().float()])
                              for k in (TEXT, TEMPLATE, ANSWER)])
            return (ce * w).sum() / w.sum().clamp(min=1), of.detach()

    return Llama()


def save(model, config, out):
    import torch
    from safetensors.torch import save_file

    tensors = {n: p.detach().to(torch.bfloat16).cpu().contiguous() for n, p in model.named_parameters()}
    save_file(tensors, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    write_json(os.path.join(out, "config.json"), config)
    write_json(os.path.join(out, "generation_config.json"), {
        "bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"],
        "do_sample": False})


def load(model, out):
    from safetensors.torch import load_file

    model.load_state_dict({n: t.float() for n, t in
                           load_file(os.path.join(out, "model.safetensors")).items()})


# -------------------------------------------------------------------------------- measuring

def autocast(device):
    import torch
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")


def bible_loss(model, corpus, length, device):
    """Mean loss (nats a token) on the held-out blocks, in windows of `length` that begin with BOS."""
    import torch
    import torch.nn.functional as F

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
    import torch

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


# --------------------------------------------------------------------------------- training

# tokens: of one step. until: share of the run's time at which the stage is left at the latest;
# it is left earlier once the loss of the answers is below `enough`.
STAGES = [
    dict(length=512, tokens=65536, until=0.40, enough=0.05, lookup_share=0.75, most_keys=8, text_share=0.2),
    dict(length=2048, tokens=131072, until=0.62, enough=0.02, lookup_share=0.5, most_keys=24, text_share=0.12),
    dict(length=8192, tokens=131072, until=1.0, enough=0.0, lookup_share=0.35, most_keys=64, text_share=0.12),
]
SMOKE = [
    dict(length=128, tokens=2048, until=0.5, enough=0.03, lookup_share=0.75, most_keys=4, text_share=0.2),
    dict(length=512, tokens=2048, until=1.0, enough=0.0, lookup_share=0.5, most_keys=4, text_share=0.2),
]


def train(args, corpus):
    import torch

    config = dict(CONFIG)
    stages = SMOKE if args.smoke else STAGES
    if args.smoke:
        config.update(num_hidden_layers=2)
    if args.stages:
        stages = [dict(stages[i]) for i in map(int, args.stages.split(","))]
        stages[-1].update(until=1.0, enough=0.0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    model = build_model(config, args.dropout).to(device)
    if args.resume:
        load(model, args.resume)
    count = sum(p.numel() for p in model.parameters())
    weight = torch.tensor(LOSS_WEIGHT, device=device)
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=args.lr, betas=(0.9, 0.95), eps=1e-9, fused=device == "cuda")
    step_fn = torch.compile(model, dynamic=False) if device == "cuda" else model
    begin = time.time()
    print(f"{count} parameters, {len(corpus.ids)} tokens of text, "
          f"{', '.join(f'{len(v)} {k}' for k, v in corpus.keys.items())} keys, "
          f"{device} {torch.cuda.get_device_name() if device == 'cuda' else ''} torch {torch.__version__}",
          flush=True)

    def loss_of(ids, cls):
        with autocast(device):
            return step_fn(ids.to(device, non_blocking=True).long(),
                           cls.to(device, non_blocking=True).long(), weight)

    if device == "cuda":              # compile every stage's shape now: a fault shows at once
        for stage in stages:
            rows = stage["tokens"] // stage["length"]
            ids, cls = next(batches(corpus, stage, [1, 0], rows, 0, False))
            loss_of(ids, cls)[0].backward()
            optimizer.zero_grad(set_to_none=True)
            torch.cuda.synchronize()
            print(f"compiled length {stage['length']} at {time.time() - begin:.0f} s, "
                  f"peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB", flush=True)

    seconds = args.minutes * 60
    step = seen = 0
    log = []
    next_eval = args.eval_every
    for number, stage in enumerate(stages):
        rows = stage["tokens"] // stage["length"]
        data = batches(corpus, stage, [args.seed, number], rows, args.workers, device == "cuda")
        sums, mean_answer, stage_step = torch.zeros(3, 2, device=device), None, 0
        t0, tokens0 = time.time(), seen
        while True:
            done = (time.time() - begin) / seconds
            if done >= stage["until"]:
                break
            lr = args.lr * min(1.0, (step + 1) / args.warmup,
                               max(0.02, (1 - done) / args.decay))
            for g in optimizer.param_groups:
                g["lr"] = lr
            loss, of = loss_of(*next(data))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            sums += of
            step += 1
            stage_step += 1
            seen += stage["tokens"]
            if stage_step % args.log_every == 0:
                text, template, answer = (sums[:, 0] / sums[:, 1].clamp(min=1)).tolist()
                sums.zero_()
                mean_answer = answer
                rate = (seen - tokens0) / (time.time() - t0)
                print(f"step {step} length {stage['length']} at {time.time() - begin:.0f} s lr {lr:.2e} "
                      f"text {text:.3f} template {template:.3f} answer {answer:.4f} "
                      f"{rate / 1e6:.2f} M tokens/s", flush=True)
                if not math.isfinite(answer + text):
                    sys.exit("the loss is not finite")
                if mean_answer < stage["enough"] and stage_step >= 500:
                    break
                if time.time() - begin > next_eval:
                    next_eval = time.time() - begin + args.eval_every
                    model.eval()
                    save(model, config, args.out)
                    print(f"  held-out text {bible_loss(model, corpus, 512, device)[0]:.3f}; lookup "
                          + ", ".join(f"{d}: {lookup_accuracy(model, corpus, d, 'word', 64, device):.2f}"
                                      for d in (256, stage["length"] - 64)), flush=True)
                    model.train()
        del data
        log.append({"length": stage["length"], "steps": stage_step, "tokens": seen - tokens0,
                    "seconds": round(time.time() - t0, 1), "answer_loss": mean_answer})
        print("stage done", log[-1], flush=True)
        save(model, config, args.out)
        if mean_answer is not None and mean_answer > 1.7 and not args.smoke and number + 1 < len(stages):
            print("lookups were not learnt in this stage; stopping here", flush=True)
            break
    load(model, args.out)                            # the figures are those of the rounded weights
    figures = report(model, corpus, device, args.questions,
                     (256,) if args.smoke else (512, 1024, 2048, 4096, 6144, 8100))
    figures.update(parameters=count, stages=log, steps=step, tokens=seen,
                   seconds=round(time.time() - begin, 1))
    before = os.path.join(args.resume or "", "training_log.json")
    if args.resume and os.path.exists(before):
        with open(before, encoding="utf-8") as f:
            figures["resumed_from"] = json.load(f)
    write_json(os.path.join(args.out, "training_log.json"), figures)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("command", choices=["tokenizer", "train", "eval"])
    p.add_argument("--out", default=os.path.dirname(os.path.abspath(__file__)))
    p.add_argument("--text", help="the book as a file, instead of the output of `bible`")
    p.add_argument("--tokenizer", help="folder of tokenizer.json (default: --out)")
    p.add_argument("--minutes", type=float, default=5.0)
    p.add_argument("--resume", help="folder of the model.safetensors to start from")
    p.add_argument("--stages", help="numbers of the stages to run, e.g. 1,2 (default: all)")
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--warmup", type=int, default=200, help="steps")
    p.add_argument("--decay", type=float, default=0.6, help="share of the time in which the rate falls")
    p.add_argument("--dropout", type=float, default=0.2)
    p.add_argument("--workers", type=int, default=min(14, max(1, (os.cpu_count() or 2) - 2)))
    p.add_argument("--log-every", type=int, default=100)
    p.add_argument("--eval-every", type=float, default=60.0, help="seconds")
    p.add_argument("--questions", type=int, default=200, help="for each distance and kind of key")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--smoke", action="store_true", help="toy sizes, for a test on the CPU")
    args = p.parse_args()

    os.makedirs(args.out, exist_ok=True)
    text = bible_text(args.text)
    if args.command == "tokenizer":
        make_tokenizer(text, args.out)
        return
    corpus = Corpus(text, os.path.join(args.tokenizer or args.out, "tokenizer.json"))
    if args.command == "train":
        train(args, corpus)
        return
    import torch

    with open(os.path.join(args.out, "config.json"), encoding="utf-8") as f:
        config = json.load(f)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model(config).to(device)
    load(model, args.out)
    report(model, corpus, device, args.questions, (512, 1024, 2048, 4096, 6144, 8100))


if __name__ == "__main__":
    main()
