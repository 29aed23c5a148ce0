"""A training run against the clock: its stages, its steps, and what it prints and leaves behind."""

import json
import math
import os
import sys
import time

import torch

from batches import batches
from config import CONFIG, write_json
from lookups import LOSS_WEIGHT
from measure import DISTANCES, bible_loss, lookup_accuracy, report
from model import Llama, autocast, best_device, load, save

# tokens: of one step. until: share of the run's time at which the stage is left at the latest;
# it is left earlier once the loss of the answers is below `enough`.
STAGES = [
    dict(length=512, tokens=65536, until=0.40, enough=0.05,
         lookup_share=0.75, most_keys=8, text_share=0.2),
    dict(length=2048, tokens=131072, until=0.62, enough=0.02,
         lookup_share=0.5, most_keys=24, text_share=0.12),
    dict(length=8192, tokens=131072, until=1.0, enough=0.0,
         lookup_share=0.35, most_keys=64, text_share=0.12),
]
SMOKE = [
    dict(length=128, tokens=2048, until=0.5, enough=0.03,
         lookup_share=0.75, most_keys=4, text_share=0.2),
    dict(length=512, tokens=2048, until=1.0, enough=0.0,
         lookup_share=0.5, most_keys=4, text_share=0.2),
]


def train(args, corpus):
    training = Training(args, corpus)
    training.print_particulars()
    if training.device == "cuda":
        training.compile_ahead()
    for number, stage in enumerate(training.stages):
        answer = training.run_stage(number, stage)
        last = number + 1 == len(training.stages)
        if answer is not None and answer > 1.7 and not args.smoke and not last:
            print("lookups were not learnt in this stage; stopping here", flush=True)
            break
    training.finish()


def chosen_stages(args):
    stages = SMOKE if args.smoke else STAGES
    if args.stages:
        stages = [dict(stages[i]) for i in map(int, args.stages.split(","))]
        stages[-1].update(until=1.0, enough=0.0)
    return stages


def rows_of(stage):
    return stage["tokens"] // stage["length"]


def make_optimizer(model, lr, device):
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=lr, betas=(0.9, 0.95), eps=1e-9, fused=device == "cuda")


class Training:
    """The model, its optimiser, the clock, and what was done so far."""

    def __init__(self, args, corpus):
        self.args, self.corpus = args, corpus
        self.stages = chosen_stages(args)
        self.config = dict(CONFIG)
        if args.smoke:
            self.config.update(num_hidden_layers=2)
        self.device = best_device()
        torch.manual_seed(args.seed)
        torch.set_float32_matmul_precision("high")
        self.model = Llama(self.config, args.dropout).to(self.device)
        if args.resume:
            load(self.model, args.resume)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.weight = torch.tensor(LOSS_WEIGHT, device=self.device)
        self.optimizer = make_optimizer(self.model, args.lr, self.device)
        self.forward = torch.compile(self.model, dynamic=False) if self.device == "cuda" else self.model
        self.begin = time.time()
        self.next_eval = args.eval_every
        self.steps = self.tokens = 0
        self.log = []                                                # of each stage that is over

    def elapsed(self):
        return time.time() - self.begin

    def print_particulars(self):
        name = torch.cuda.get_device_name() if self.device == "cuda" else ""
        print(f"{self.parameters} parameters, {len(self.corpus.ids)} tokens of text, "
              f"{', '.join(f'{len(v)} {k}' for k, v in self.corpus.keys.items())} keys, "
              f"{self.device} {name} torch {torch.__version__}", flush=True)

    def loss_of(self, ids, cls):
        with autocast(self.device):
            return self.forward(ids.to(self.device, non_blocking=True).long(),
                                cls.to(self.device, non_blocking=True).long(), self.weight)

    def compile_ahead(self):
        """Compiles every stage's shape before the first step: a fault shows at once."""
        for stage in self.stages:
            ids, cls = next(batches(self.corpus, stage, [1, 0], rows_of(stage), 0, False))
            self.loss_of(ids, cls)[0].backward()
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.synchronize()
            print(f"compiled length {stage['length']} at {self.elapsed():.0f} s, "
                  f"peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB", flush=True)

    def run_stage(self, number, stage):
        """Trains until the stage's end. Returns the last mean loss of the answers, None if none was taken."""
        data = batches(self.corpus, stage, [self.args.seed, number], rows_of(stage), self.args.workers,
                       self.device == "cuda")
        sums, answer, steps = torch.zeros(3, 2, device=self.device), None, 0
        begin, tokens = time.time(), self.tokens
        while (done := self.elapsed() / (self.args.minutes * 60)) < stage["until"]:
            lr = self.rate_at(done)
            sums += self.step(lr, *next(data))
            steps += 1
            self.tokens += stage["tokens"]
            if steps % self.args.log_every == 0:
                answer = self.print_losses(stage, lr, sums, begin, tokens)
                if answer < stage["enough"] and steps >= 500:
                    break
                if self.elapsed() > self.next_eval:
                    self.next_eval = self.elapsed() + self.args.eval_every
                    self.print_figures(stage)
        del data                                                     # and with it its processes
        self.log.append({"length": stage["length"], "steps": steps, "tokens": self.tokens - tokens,
                         "seconds": round(time.time() - begin, 1), "answer_loss": answer})
        print("stage done", self.log[-1], flush=True)
        save(self.model, self.config, self.args.out)
        return answer

    def rate_at(self, done):
        """The learning rate of the next step, when `done` of the run's time is over."""
        return self.args.lr * min(1.0, (self.steps + 1) / self.args.warmup,
                                  max(0.02, (1 - done) / self.args.decay))

    def step(self, lr, ids, cls):
        for g in self.optimizer.param_groups:
            g["lr"] = lr
        loss, of = self.loss_of(ids, cls)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.steps += 1
        return of

    def print_losses(self, stage, lr, sums, begin, tokens):
        """Prints the mean losses since the last such line, sets `sums` to 0, and returns the answers'.

        The stage began at the time `begin`, after `tokens` tokens.
        """
        text, template, answer = (sums[:, 0] / sums[:, 1].clamp(min=1)).tolist()
        sums.zero_()
        rate = (self.tokens - tokens) / (time.time() - begin)
        print(f"step {self.steps} length {stage['length']} at {self.elapsed():.0f} s lr {lr:.2e} "
              f"text {text:.3f} template {template:.3f} answer {answer:.4f} "
              f"{rate / 1e6:.2f} M tokens/s", flush=True)
        if not math.isfinite(answer + text):
            sys.exit("the loss is not finite")
        return answer

    def print_figures(self, stage):
        """Saves the model as it is, and prints a few figures of it."""
        model, corpus, device = self.model, self.corpus, self.device
        model.eval()
        save(model, self.config, self.args.out)
        print(f"  held-out text {bible_loss(model, corpus, 512, device)[0]:.3f}; lookup "
              + ", ".join(f"{d}: {lookup_accuracy(model, corpus, d, 'word', 64, device):.2f}"
                          for d in (256, stage["length"] - 64)), flush=True)
        model.train()

    def finish(self):
        """Measures what was saved, and writes the run's log."""
        args = self.args
        load(self.model, args.out)                       # the figures are those of the rounded weights
        figures = report(self.model, self.corpus, self.device, args.questions,
                         (256,) if args.smoke else DISTANCES)
        figures.update(parameters=self.parameters, stages=self.log, steps=self.steps, tokens=self.tokens,
                       seconds=round(self.elapsed(), 1))
        before = os.path.join(args.resume or "", "training_log.json")
        if args.resume and os.path.exists(before):
            with open(before, encoding="utf-8") as f:
                figures["resumed_from"] = json.load(f)
        write_json(os.path.join(args.out, "training_log.json"), figures)
