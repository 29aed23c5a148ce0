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
import os

from corpus import Corpus, bible_text, make_tokenizer
from lookups import check_documents


def evaluate(args, corpus):
    from measure import DISTANCES, report
    from model import Llama, best_device, load

    with open(os.path.join(args.out, "config.json"), encoding="utf-8") as f:
        config = json.load(f)
    device = best_device()
    model = Llama(config).to(device)
    load(model, args.out)
    report(model, corpus, device, args.questions, DISTANCES)


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
    check_documents(corpus)
    if args.command == "train":
        from training import train  # only here: PyTorch is not needed to make the tokenizer

        train(args, corpus)
    else:
        evaluate(args, corpus)


if __name__ == "__main__":
    main()
