"""Lookups: lines that tell a key's number or ask for it again, and documents made of them."""

import math

import numpy as np

from config import BOS, EOS, VOCAB

# What a token counts for in the loss, by its class.
NONE, TEXT, TEMPLATE, ANSWER, KEY = 0, 1, 2, 3, 4
LOSS_WEIGHT = [0.0, 1.0, 0.3, 1.5, 0.1]


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
    most = log_uniform(rng, 2, max(2, n // 2))
    keys = draw_keys(c, rng, most, "mixed" if rng.random() < 0.6 else "word")
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
        digits = draw_digits(rng, n_keys)
        lines, of_lines, n = build_lines(c, keys[order], digits[order], first_seen(order), False)
        ids, cls = strew(c, v0, ids, slots, lines, n, of_lines, text_cls)
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


def check_documents(c):
    """What is put together from pieces is what the tokenizer makes of the text."""
    vocab = c.tok.get_vocab()
    assert not [t for t in vocab if sum(ch.isdigit() for ch in t) > 1 and t not in (BOS, EOS)]
    rng = np.random.default_rng(0)
    for ids in (lookup_doc(c, rng, 400)[0], strewn_doc(c, rng, 900, 5, 1.0)[0],
                probe_doc(c, rng, 600, "long")):
        ids = [i for i in ids.tolist() if i not in (c.bos, c.eos)]
        cut = max(i for i, t in enumerate(ids) if "\n" in c.tok.decode([t])) + 1
        assert c.encode(c.tok.decode(ids[:cut])) == ids[:cut], (c.tok.decode(ids), ids)
