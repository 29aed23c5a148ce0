#!/usr/bin/env python3
"""Compares `sparsekv tokenize` with Hugging Face's packages on random strings, and writes goldens.

    python3 -m venv V && V/bin/pip install tokenizers sentencepiece 'transformers<5'
    V/bin/python compare_tokenizers.py build/bin/sparsekv [--strings N] [--seed S] [MODEL_DIR ...]
    V/bin/python compare_tokenizers.py --golden OUT_DIR

Without --golden: every MODEL_DIR, then small tokenizers of every construction that model families
use, which this script trains. What is compared: ids without and with the tokenizer's rule (BOS,
EOS), and the decoded text, all with `tokenizers`; directories with only a tokenizer.model with
transformers' LlamaTokenizer (the slow one, before transformers 5) or, without it, with
`sentencepiece`. Ends with 1 when anything differs.
"""

import argparse
import base64
import collections
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import unicodedata

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors, trainers

try:
    import sentencepiece
except ImportError:
    sentencepiece = None
try:
    import transformers
    SLOW = int(transformers.__version__.split(".")[0]) < 5
except ImportError:
    SLOW = False

OLD = tuple(map(int, tokenizers.__version__.split(".")[:2])) <= (0, 20)

GPT4 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3 = GPT4 % "{1,3}"
QWEN2 = GPT4 % ""
CL100K = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++"
          r"[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
NESTED = (r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
          r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re)?|[\p{L}&&[^\p{Han}]]+|\p{N}{1,3}"
          r"| ?[^\s\p{L}\p{N}[_]]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK = [r"\p{N}{1,3}", r"[一-龥\u3040-ゟ゠-ヿ]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"]

CORPUS = """In the beginning God created the heaven and the earth. And the earth was without form, and
void; and darkness was upon the face of the deep. It's what we've said: they'll go, I'd say, 12,345.67!
def main(argc, argv):\n    if argc > 1:\n        return argv[1:]  # comment\n\treturn None\n
Größe, naïve façade, Ünïcödé. Съешь же ещё этих мягких французских булок. Ξεσκεπάζω την ψυχοφθόρα.
あのイーハトーヴォのすきとおった風、夏でも底に冷たさをもつ青いそら。我能吞下玻璃而不伤身体。 다람쥐 헌 쳇바퀴에 타고파.
مرحبا بالعالم שלום עולם नमस्ते दुनिया สวัสดีชาวโลก 👍🏽 👩‍👩‍👧 🇩🇪 ½ ² Ⅻ ٣٤ e\u0301 한글 …
The the THE then there their 1999 2024 3.14159   two  spaces   and\n\n\nlines\n"""

BLOCKS = [(0x20, 0x7E), (0xA0, 0xFF), (0x100, 0x24F), (0x250, 0x2FF), (0x300, 0x36F), (0x370, 0x3FF),
          (0x400, 0x52F), (0x531, 0x58F), (0x591, 0x5F4), (0x600, 0x6FF), (0x700, 0x74F),
          (0x900, 0x97F), (0x980, 0x9FE), (0xA01, 0xA76), (0xA81, 0xAFF), (0xB01, 0xB77),
          (0xB82, 0xBFA), (0xC00, 0xC7F), (0xC80, 0xCF2), (0xD00, 0xD7F), (0xD81, 0xDF4),
          (0xE01, 0xE5B), (0xE81, 0xECD), (0xF00, 0xFDA), (0x1000, 0x109F), (0x10A0, 0x10FF),
          (0x1100, 0x11FF), (0x1200, 0x139F), (0x13A0, 0x13FD), (0x1400, 0x167F), (0x1780, 0x17F9),
          (0x1800, 0x18AA), (0x1D00, 0x1DFF), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x20C0),
          (0x2100, 0x218B), (0x2190, 0x23FF), (0x2460, 0x27BF), (0x2E80, 0x2FD5), (0x3000, 0x30FF),
          (0x3105, 0x31BF), (0x3200, 0x33FF), (0x4E00, 0x9FFF), (0xA000, 0xA4C6), (0xA640, 0xA69F),
          (0xAC00, 0xD7A3), (0xE000, 0xE010), (0xF900, 0xFAD9), (0xFB00, 0xFDFF), (0xFE00, 0xFE6F),
          (0xFF01, 0xFFEE), (0xFFF9, 0xFFFF), (0x10330, 0x1034A), (0x10400, 0x1044F),
          (0x12000, 0x12399), (0x1D100, 0x1D1E8), (0x1D400, 0x1D7FF), (0x1F1E6, 0x1F1FF),
          (0x1F300, 0x1F6D7), (0x1F900, 0x1F9FF), (0x20000, 0x2A6DF), (0xE0001, 0xE007F),
          (0x10FFF0, 0x10FFFF)]
SPACES = " \t\n\r\x0b\x0c\x85\xa0\u1680\u2000\u2003\u2009\u200a\u2028\u2029\u202f\u205f\u3000\u200b\ufeff\u2060\u180e"
EMOJI = ["👍", "👍🏽", "👩‍👩‍👧", "🏳️‍🌈", "❤️", "🇩🇪🇫🇷", "1️⃣", "👩🏿‍🚀", "\u200d", "🏽", "☺\ufe0e"]
ASCII = ["the", "The", "it's", "WE'LL", "I'D", "x'", "''", "don't", "foo_bar", "camelCaseHTTP", "a1b22",
         "12345", "3.14", "1,000", "--", "...", "!!!", "(a)", "http://x.y/z?q=1", "</s>", "<s>", "<unk>",
         "<0x0A>", "▁", "▁▁the", "Ġ", "ſ", "'ſ", "K", "ǅ", "İ", "ß", "ﬃ", "Å", "\u212b", "e\u0301\u0316",
         "\u1100\u1161\u11a8", "\u0958", "\ufffd", "\ufffd\ufffd", "Ã©", "â€™", "\x00", "\x01\x02",
         "\x1b[0m", "\x7f", "\x9f", "_", "#include", "\\n", "{}", "||", "=>", "²", "½", "Ⅻ", "٣", "〇"]


def alphabet(block):
    return [chr(c) for c in range(block[0], block[1] + 1)
            if unicodedata.category(chr(c)) not in ("Cs", "Cn") or c >= 0xFFF9]


ALPHABETS = [a for a in map(alphabet, BLOCKS) if a]


def random_string(rng, specials):
    out = []
    for _ in range(rng.choice([0, 1, 1, 2, 3, 5, 8, 13, 21])):
        kind = rng.randrange(12)
        if kind < 4:
            letters = rng.choice(ALPHABETS)
            out.append("".join(rng.choice(letters) for _ in range(rng.randrange(1, 9))))
        elif kind < 7:
            out.append(rng.choice(ASCII))
        elif kind == 7:
            out.append("".join(rng.choice(SPACES) for _ in range(rng.randrange(1, 5))))
        elif kind == 8:
            out.append(rng.choice(EMOJI))
        elif kind == 9:
            out.append(rng.choice(" \n\t1a.").__mul__(rng.choice([1, 2, 3, 4, 7, 17, 40])))
        elif kind == 10 and specials:
            out.append(rng.choice(["", " ", "  ", "\n", "x"]) + rng.choice(specials) +
                       rng.choice(["", " ", " \n", "x", "\u3000"]))
        else:
            words = CORPUS.split(" ")
            at = rng.randrange(len(words))
            out.append(" ".join(words[at:at + rng.randrange(1, 6)]))
        if rng.random() < 0.5:
            out.append(" ")
    return "".join(out)


def byte_level(pre=None, normalizer=None, post=None, merges=120, **model):
    """A byte-level tokenizer, trained on CORPUS."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre or pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(vocab_size=256 + merges, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([CORPUS], trainer)
    for name, value in model.items():
        setattr(tokenizer.model, name, value)
    tokenizer.post_processor = post or processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def regex_words(*patterns):
    return pre_tokenizers.Sequence([split(p) for p in patterns] +
                                   [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def chat_tokens(tokenizer, *more):
    """The added tokens of a chat model, and their kinds of flags."""
    tokenizer.add_special_tokens([AddedToken("<|im_start|>", normalized=False),
                                  AddedToken("<|im_end|>", normalized=False),
                                  AddedToken("<|im_end|>\n", normalized=False)])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("Ǖa", normalized=True),
                          *more])
    return tokenizer


def template(tokenizer, prefix="<s>", suffix=None):
    """BOS before the text and perhaps EOS after it."""
    for token in filter(None, (prefix, suffix)):
        if tokenizer.token_to_id(token) is None:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False)])
    pieces = ([prefix] if prefix else []) + ["$A"] + ([suffix] if suffix else [])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(pieces),
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in (prefix, suffix) if t])
    return tokenizer


def marked(pre=None, normalizer=None, decoder=None, byte_fallback=True, merges=120, fuse_unk=True):
    """A tokenizer over characters with byte fallback, trained on CORPUS with marks for spaces."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    byte_tokens = [f"<0x{b:02X}>" for b in range(256)] if byte_fallback else []
    specials = ["<unk>", "<s>", "</s>"] + byte_tokens
    trained.train_from_iterator([CORPUS], trainers.BpeTrainer(
        vocab_size=len(specials) + 70 + merges, limit_alphabet=70, special_tokens=specials,
        show_progress=False))
    model = json.loads(trained.to_str())["model"]
    # Runs of marks and newlines, as large vocabularies have them.
    for left, right in [("▁", "▁"), ("▁▁", "▁▁"), ("\n", "\n")]:
        if left in model["vocab"] and right in model["vocab"] and left + right not in model["vocab"]:
            model["vocab"][left + right] = len(model["vocab"])
            model["merges"].append([left, right])
    tokenizer = tokenizers.Tokenizer(models.BPE(
        vocab=model["vocab"], merges=[tuple(m) if isinstance(m, list) else tuple(m.split(" "))
                                      for m in model["merges"]],
        unk_token="<unk>", byte_fallback=byte_fallback, fuse_unk=fuse_unk))
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    if pre:
        tokenizer.pre_tokenizer = pre
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoder or LLAMA_DECODER()
    return tokenizer


def LLAMA_DECODER():
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                              decoders.Strip(" ", 1, 0)])


def LLAMA_NORMALIZER():
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def gemma():
    tokenizer = marked(pre=pre_tokenizers.Split(" ", "merged_with_previous"),
                       normalizer=normalizers.Replace(" ", "▁"),
                       decoder=decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                                  decoders.Fuse()]))
    tokenizer.add_tokens([AddedToken(t, normalized=False)
                          for t in ("\n\n\n", "▁▁▁", "<table>", "<start_of_turn>")])
    return template(tokenizer, "<bos>")


def phi3():
    tokenizer = marked(normalizer=LLAMA_NORMALIZER())
    tokenizer.add_special_tokens([AddedToken("<|end|>", rstrip=True, normalized=False),
                                  AddedToken("<|user|>", rstrip=True, normalized=False),
                                  AddedToken("<|x|>", lstrip=True, rstrip=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("cat", single_word=True, normalized=False),
                          AddedToken("dog", single_word=True, lstrip=True, normalized=True),
                          AddedToken("big dog", normalized=True),
                          AddedToken("\n\n", normalized=False)])
    return tokenizer


def metaspace(scheme, do_split, with_bytes=False):
    step = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=do_split)
    return template(marked(pre=step, decoder=decoders.Sequence(
        [decoders.Metaspace(prepend_scheme=scheme), decoders.ByteFallback(), decoders.Fuse()])
        if with_bytes else decoders.Metaspace(prepend_scheme=scheme)))


def normalizer_mix():
    return normalizers.Sequence([
        normalizers.Replace(Regex(r"\s{2,}"), " "), normalizers.Replace("``", '"'),
        normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Strip()])


def families():
    pre = pre_tokenizers
    yield "gpt2", lambda: chat_tokens(byte_level())
    yield "roberta", lambda: (lambda t: (t.add_special_tokens(["<s>", "</s>"]), setattr(
        t, "post_processor", processors.RobertaProcessing(("</s>", t.token_to_id("</s>")),
                                                          ("<s>", t.token_to_id("<s>")))), t)[-1])(
        byte_level(pre.ByteLevel(add_prefix_space=True)))
    yield "llama3", lambda: template(chat_tokens(byte_level(regex_words(LLAMA3))), "<|begin|>")
    yield "qwen2", lambda: chat_tokens(byte_level(regex_words(QWEN2), normalizers.NFC()))
    yield "tekken", lambda: template(chat_tokens(byte_level(regex_words(TEKKEN))))
    yield "cl100k", lambda: byte_level(regex_words(CL100K))
    yield "nested", lambda: byte_level(regex_words(NESTED))
    yield "deepseek", lambda: template(chat_tokens(byte_level(regex_words(*DEEPSEEK))), "<b>", "<e>")
    yield "starcoder", lambda: byte_level(pre.Sequence([pre.Digits(True), pre.ByteLevel(False)]))
    yield "falcon", lambda: byte_level(pre.Sequence([
        pre.Punctuation("contiguous"), pre.Digits(False), split("[0-9][0-9][0-9]"),
        pre.ByteLevel(add_prefix_space=False, use_regex=False)]))
    for behavior in ("removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"):
        for invert in (False, True):
            yield f"split-{behavior}-{invert}", lambda b=behavior, i=invert: byte_level(
                pre.Sequence([split(r"\p{L}+|\d", b, i), pre.Split(" ", b, i),
                              pre.ByteLevel(add_prefix_space=True, use_regex=False)]))
        yield f"punctuation-{behavior}", lambda b=behavior: byte_level(
            pre.Sequence([pre.Punctuation(b), pre.ByteLevel(add_prefix_space=False)]))
    yield "whitespace", lambda: byte_level(pre.Sequence([pre.Whitespace(), pre.ByteLevel(True)]))
    yield "whitespace-split", lambda: byte_level(
        pre.Sequence([pre.WhitespaceSplit(), pre.ByteLevel(False, use_regex=False)]))
    for form in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Strip"):
        yield form, lambda f=form: chat_tokens(byte_level(normalizer=getattr(normalizers, f)()))
    yield "normalizer-mix", lambda: chat_tokens(byte_level(normalizer=normalizer_mix()))
    yield "strip-left", lambda: byte_level(normalizer=normalizers.Strip(left=True, right=False))
    yield "llama2", lambda: template(marked(normalizer=LLAMA_NORMALIZER()))
    yield "llama2-eos", lambda: template(marked(normalizer=LLAMA_NORMALIZER()), "<s>", "</s>")
    yield "gemma", gemma
    yield "phi3", phi3
    for scheme in ("always", "first", "never"):
        for do_split in (True, False):
            yield f"metaspace-{scheme}-{do_split}", lambda s=scheme, d=do_split: metaspace(s, d)
    yield "metaspace-fallback", lambda: metaspace("first", False, with_bytes=True)
    yield "unk", lambda: marked(pre=pre.WhitespaceSplit(), byte_fallback=False)
    yield "unk-apart", lambda: marked(pre=pre.Whitespace(), byte_fallback=False, fuse_unk=False)


def sentencepiece_models(out_dir):
    """Directories with a tokenizer.model each, by name."""
    corpus = out_dir / "corpus.txt"
    corpus.write_text(CORPUS * 8)
    variants = {
        "bpe": dict(model_type="bpe", byte_fallback=True, remove_extra_whitespaces=False,
                    user_defined_symbols=["▁▁▁", "<table>", "\n\n"]),
        "bpe-plain": dict(model_type="bpe"),
        "unigram": dict(model_type="unigram", byte_fallback=True, remove_extra_whitespaces=False),
        "unigram-plain": dict(model_type="unigram", user_defined_symbols=["<table>"]),
    }
    llama = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
             "unk_token": "<unk>"}
    for name, options in variants.items():
        base = out_dir / name
        base.mkdir()
        vocab = (256 if options.get("byte_fallback") else 0) + 240
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus), model_prefix=str(base / "tokenizer"), vocab_size=vocab,
            normalization_rule_name="identity", minloglevel=2, hard_vocab_limit=False,
            character_coverage=0.98, **options)
        (base / "tokenizer.vocab").unlink()
        size = sentencepiece.SentencePieceProcessor(str(base / "tokenizer.model")).get_piece_size()
        added = {str(size): dict(content="<|end|>", rstrip=True, lstrip=False, single_word=False,
                                 normalized=False, special=True),
                 str(size + 1): dict(content="<tool>", rstrip=False, lstrip=True, single_word=False,
                                     normalized=False, special=False)}
        for config_name, config in {
                "legacy": {**llama, "legacy": True},
                "new": {**llama, "legacy": False, "added_tokens_decoder": added},
                "new-no-prefix": {**llama, "legacy": False, "add_prefix_space": False,
                                  "add_bos_token": False, "add_eos_token": True},
                "legacy-added": {**llama, "legacy": True, "added_tokens_decoder": added}}.items():
            if not SLOW and config_name != "legacy":
                continue
            folder = out_dir / f"sentencepiece-{name}-{config_name}"
            folder.mkdir()
            (folder / "tokenizer.model").write_bytes((base / "tokenizer.model").read_bytes())
            (folder / "tokenizer_config.json").write_text(json.dumps(config))
            yield folder


def read_json(path):
    """The tokenizer, also where merges are written as "a b" though tokens have spaces in them."""
    document = json.loads(path.read_text())
    vocab, merges = document["model"]["vocab"], document["model"]["merges"]
    for i, merge in enumerate(merges):
        if isinstance(merge, str):
            cuts = [(merge[:at], merge[at + 1:]) for at, c in enumerate(merge) if c == " "]
            merges[i] = next(c for c in cuts if c[0] in vocab and c[1] in vocab and c[0] + c[1] in vocab)
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(document))
    except Exception:  # that is what the package raises; versions before 0.20 know no pairs
        return tokenizers.Tokenizer.from_file(str(path))


class Package:
    """A model directory as the packages see it."""

    def __init__(self, folder):
        self.folder = folder
        if (folder / "tokenizer.json").exists():
            self.tokenizer = read_json(folder / "tokenizer.json")
            added = self.tokenizer.get_added_tokens_decoder().values()
            self.specials = [t.content for t in added]
            self.has_rule = not (folder / "tokenizer_config.json").exists()
            # Newer versions decode an added token to its normal form, and take no special one for
            # special then. Here and in versions up to 0.20 it is what the file says.
            self.has_decode = OLD or self.tokenizer.normalizer is None or not any(
                t.normalized for t in added)
        elif SLOW:
            self.tokenizer = transformers.LlamaTokenizer.from_pretrained(str(folder))
            self.specials = [t.content for t in self.tokenizer.added_tokens_decoder.values()]
            self.has_rule, self.has_decode = True, False
        else:
            self.tokenizer = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
            self.specials, self.has_rule, self.has_decode = [], False, False

    def usable(self, text):
        # Without the slow tokenizer nothing says what added tokens in a text become.
        return SLOW or hasattr(self.tokenizer, "get_added_tokens_decoder") or "<" not in text

    def encode(self, text, rule):
        if hasattr(self.tokenizer, "encode_batch"):
            return self.tokenizer.encode(text, add_special_tokens=rule).ids
        if SLOW:
            return self.tokenizer.encode(text, add_special_tokens=rule)
        return self.tokenizer.encode(text)

    def decode(self, ids):
        return self.tokenizer.decode(ids)


def ask(binary, folder, lines, *flags):
    done = subprocess.run([binary, "tokenize", "--model", str(folder), "--json-lines", *flags],
                          input="".join(lines).encode(), capture_output=True)
    if done.returncode:
        raise SystemExit(f"{folder}: {done.stderr.decode()}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def compare(binary, folder, count, rng):
    try:
        package = Package(folder)
    except Exception as error:  # that is what the package raises
        print(f"{folder.name}: this version of the package cannot load it: {error}")
        return 0
    texts = [random_string(rng, package.specials) for _ in range(count)]
    texts = [t for t in texts if package.usable(t)]
    lines = [json.dumps(t) + "\n" for t in texts]
    differences = 0

    def report(what, text, ours, theirs):
        nonlocal differences
        differences += 1
        if differences <= 3:
            print(f"  {what} {text!a}\n    ours   {ours!a}\n    theirs {theirs!a}")

    ours = [a["ids"] for a in ask(binary, folder, lines, "--no-bos")]
    theirs = [package.encode(t, False) for t in texts]
    for text, a, b in zip(texts, ours, theirs, strict=True):
        if a != b:
            report("ids", text, a, b)
    if package.has_rule:
        for text, a in zip(texts, ask(binary, folder, lines), strict=True):
            if a["ids"] != package.encode(text, True):
                report("rule", text, a["ids"], package.encode(text, True))
    if package.has_decode:
        decoded = ask(binary, folder, [json.dumps(i) + "\n" for i in theirs], "--decode")
        for ids, a in zip(theirs, decoded, strict=True):
            if a != package.decode(ids):
                report("decode", ids, a, package.decode(ids))
    print(f"{folder.name}: {len(texts)} strings, {differences} differences", flush=True)
    return differences


GOLDEN = ["gpt2", "llama3", "qwen2", "tekken", "nested", "deepseek", "gemma", "phi3",
          "metaspace-first-True", "normalizer-mix", "sentencepiece-bpe-new",
          "sentencepiece-unigram-legacy-added"]


def write_golden(folder, out_dir, rng):
    package = Package(folder)
    texts = [random_string(rng, package.specials) for _ in range(80)]
    texts = [t for t in texts if t and len(t) < 60][:16] + [""]
    files = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json":
            files[path.name] = json.loads(path.read_text())
        else:
            files[path.name] = base64.b64encode(path.read_bytes()).decode()
    cases = [{"text": t, "ids": package.encode(t, False), "rule": package.encode(t, True)}
             for t in texts]
    made_with = {"tokenizers": tokenizers.__version__}
    if not files.get("tokenizer.json"):
        made_with = {"transformers": transformers.__version__, "sentencepiece":
                     sentencepiece.__version__}
    golden = {"made_with": made_with, "files": files, "cases": cases}
    text = json.dumps(golden, ensure_ascii=True, separators=(",", ":"))
    (out_dir / f"{folder.name}.json").write_text(text + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary", nargs="?")
    parser.add_argument("models", nargs="*", type=pathlib.Path)
    parser.add_argument("--strings", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="of the tokenizers made here, those whose names hold this")
    parser.add_argument("--golden", type=pathlib.Path)
    options = parser.parse_intermixed_args()
    print(f"tokenizers {tokenizers.__version__}" +
          (f", transformers {transformers.__version__} (slow)" if SLOW else ""))
    counts = collections.Counter()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folders = list(options.models)
        for family, make in families():
            folder = pathlib.Path(name) / family
            folder.mkdir()
            make().save(str(folder / "tokenizer.json"), pretty=False)
            folders.append(folder)
        if sentencepiece:
            folders += sentencepiece_models(pathlib.Path(name))
        for folder in folders:
            if options.golden:
                if folder.name in GOLDEN:
                    write_golden(folder, options.golden, rng)
            elif not options.only or options.only in folder.name or folder in options.models:
                counts["differences"] += compare(options.binary, folder, options.strings, rng)
                counts["tokenizers"] += 1
    if not options.golden:
        print(f"{counts['tokenizers']} tokenizers, {counts['differences']} differences")
    return 1 if counts["differences"] else 0


if __name__ == "__main__":
    sys.exit(main())
