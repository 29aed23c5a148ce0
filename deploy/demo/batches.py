"""Batches to train on: documents packed in rows, made as they are needed."""

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lookups import lookup_doc, strewn_doc


class Rows(IterableDataset):
    """Endless batches of (ids, classes), each batch x (length + 1), documents packed in rows."""

    def __init__(self, corpus, stage, seed, batch):
        super().__init__()
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
        info = get_worker_info()                   # each process draws its own rows
        rng = np.random.default_rng([*self.seed, info.id if info else 0])
        while True:
            rows = [self.row(rng) for _ in range(self.batch)]
            yield (torch.from_numpy(np.stack([r[0] for r in rows])),
                   torch.from_numpy(np.stack([r[1] for r in rows])))


def batches(corpus, stage, seed, batch, workers, pin):
    """The batches of a stage, from `workers` processes (0: from this one)."""
    return iter(DataLoader(Rows(corpus, stage, seed, batch), batch_size=None, num_workers=workers,
                           pin_memory=pin, prefetch_factor=4 if workers else None))
