"""The book: its text, the tokenizer made from it, and its tokens, some verses of them held out."""

import os
import subprocess

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from config import BOS, CONFIG, EOS, TOKENIZER_CONFIG, VOCAB, write_json

# The processes that make batches are forked after the tokenizer was used: it must have no threads.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Pre-tokenizer of Llama 3. Digits come alone in the end, because the BPE is trained without any.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
         r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def bible_text(path):
    """The whole book, one verse a line, each headed by its reference (`Ge1:1 In the ...`)."""
    if path:
        with open(path, encoding="utf-8") as f:
            return f.read()
    run = subprocess.run(["bible", "-f", "Gen1:1-Rev22:21"], stdout=subprocess.PIPE, check=True)
    return run.stdout.decode("utf-8")


def make_tokenizer(text, out):
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
    write_json(os.path.join(out, "tokenizer_config.json"), TOKENIZER_CONFIG)


class Corpus:
    """Token ids of the book by verse, of the lookup lines' pieces, and of the words for keys."""

    def __init__(self, text, tokenizer_path):
        self.tok = Tokenizer.from_file(tokenizer_path)
        self.bos, self.eos = self.tok.token_to_id(BOS), self.tok.token_to_id(EOS)
        self._read_verses([line + "\n" for line in text.splitlines()])
        # The pieces of a lookup line. Pre-tokenisation splits exactly between them.
        self.head = np.array(self.encode("The number of"))
        self.is_ = self._single(" is")
        self.space = self._single(" ")
        self.digit = np.array([self._single(str(d)) for d in range(10)])
        self.stop = self._single(".\n")
        self._read_keys(text.split())

    def encode(self, text):
        return self.tok.encode(text, add_special_tokens=False).ids

    def _single(self, text):
        ids = self.encode(text)
        assert len(ids) == 1, f"{text!r} is {len(ids)} tokens"
        return ids[0]

    def _read_verses(self, lines):
        verses = [np.array(e.ids, np.int16)
                  for e in self.tok.encode_batch(lines, add_special_tokens=False)]
        self.start = np.concatenate([[0], np.cumsum([len(v) for v in verses])])  # verse -> offset
        self.ids = np.concatenate(verses)
        # The book falls into 100 blocks of verses; blocks 10, 30, 50, 70 and 90 are held out.
        edge = [len(lines) * i // 100 for i in range(101)]
        self.val_runs = [(edge[b], edge[b + 1]) for b in (10, 30, 50, 70, 90)]
        cuts = [0] + [e for run in self.val_runs for e in run] + [len(lines)]
        self.train_runs = list(zip(cuts[0::2], cuts[1::2]))

    def _read_keys(self, words):
        """Keys: words of the book, of one token or of two to three. Every tenth is never trained on."""
        count = {}
        for word in words:
            if word.isalpha() and word.isascii() and 4 <= len(word) <= 14 and word != "number":
                count[word] = count.get(word, 0) + 1
        rows = [self.encode(" " + w) for w in sorted(count) if count[w] >= 3]
        rows = [(r + [-1, -1])[:3] for r in rows if len(r) <= 3]
        trained = np.array([r for n, r in enumerate(rows) if n % 10 != 0])
        held_out = np.array([r for n, r in enumerate(rows) if n % 10 == 0])
        self.keys = {"word": trained[trained[:, 1] < 0], "long": trained[trained[:, 1] >= 0],
                     "held_out_word": held_out[held_out[:, 1] < 0],
                     "held_out_long": held_out[held_out[:, 1] >= 0]}
