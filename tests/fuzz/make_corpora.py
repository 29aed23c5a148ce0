#!/usr/bin/env python3
"""Writes the seeds of the fuzz targets beside this script: corpus/TARGET/NAME."""

import json
import pathlib
import struct

ROOT = pathlib.Path(__file__).parent / "corpus"


def write(target, name, content):
    folder = ROOT / target
    folder.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, (bytes, str)):
        content = json.dumps(content, ensure_ascii=False)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def safetensors(tensors, data=b""):
    header = json.dumps(tensors).encode()
    return struct.pack("<Q", len(header)) + header + data


write("safetensors", "two", safetensors(
    {"__metadata__": {"format": "pt"},
     "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
     "b": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]}}, bytes(22)))
write("safetensors", "scalar", safetensors({"x": {"dtype": "I64", "shape": [], "data_offsets": [0, 8]}},
                                           bytes(8)))
write("safetensors", "empty", safetensors({}))

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 40, "hidden_size": 24,
    "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 64},
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": [2, 3], "torch_dtype": "float32"}
write("config", "llama3", CONFIG)
write("config", "with-generation", json.dumps(dict(CONFIG, rope_scaling=None)) + "\0" +
      json.dumps({"eos_token_id": [5, 6]}))
write("config", "family", dict(CONFIG, architectures=["Qwen3ForCausalLM"], model_type="qwen3",
                               sliding_window=64, use_sliding_window=False,
                               rope_parameters={"rope_type": "yarn", "factor": 4.0}))

NAMES = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
for layer in range(2):
    NAMES += [f"model.layers.{layer}.{part}.weight" for part in (
        "input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
        "self_attn.o_proj", "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")]
ORDER = sorted(NAMES[3:12])
write("shard_index", "good", {"metadata": {"total_size": 1},
                              "weight_map": {n: "a.safetensors" if n in ORDER else "b.safetensors"
                                             for n in NAMES}})
write("shard_index", "outside", {"weight_map": {"lm_head.weight": "../a.safetensors"}})

PERMUTATION = [3, 1, 0, 2, 7, 6, 5, 4]
write("channel_config", "ours", {
    "format": "sparsekv-channels", "version": 1, "fingerprint": "0123456789abcdef", "layers": 2,
    "kv_heads": 2, "head_dim": 8, "channels": 2, "label_format": "int4", "pooling": "max-normalised",
    "criterion": "qk", "text": {"xxh3": "0123456789abcdef", "tokens": 5},
    "order": [[PERMUTATION] * 2] * 2})
write("channel_config", "published", {
    f"model.layers.{layer}.self_attn.{kind}_proj": [PERMUTATION] * heads
    for layer in range(2) for kind, heads in (("k", 2), ("q", 4), ("qk", 4))})


def added(number, content, **flags):
    return {"id": number, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True, **flags}


BYTES = {chr(0xA1 + i): i for i in range(8)} | {c: 10 + i for i, c in enumerate("Ġabce1Ċ<s>/|!")}
BYTES |= {"ab": 40, "abc": 41, "Ġa": 42}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def byte_level(normalizer, steps, post=BYTE_LEVEL):
    return {"version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [added(50, "<|a|>", rstrip=True), added(51, "cat", single_word=True,
                                                                    normalized=True, special=False)],
            "normalizer": normalizer, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
            "post_processor": post, "decoder": BYTE_LEVEL,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "ignore_merges": True,
                      "vocab": BYTES, "merges": [["a", "b"], ["ab", "c"], "Ġ a"]}}


def split(pattern, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


REGEX = (r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?+\p{L}++|[\p{Lu}\p{M}&&[^\p{Han}]]+|\p{N}{1,3}+"
         r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s")
write("tokenizer_json", "qwen", byte_level({"type": "NFC"}, [split({"Regex": REGEX}), BYTE_LEVEL]))
write("tokenizer_json", "steps", byte_level(
    {"type": "Sequence", "normalizers": [
        {"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"},
        {"type": "Strip", "strip_left": True, "strip_right": True},
        {"type": "Replace", "pattern": {"Regex": "a{2,}"}, "content": "b"}]},
    [{"type": "Punctuation", "behavior": "Contiguous"}, {"type": "Digits", "individual_digits": True},
     {"type": "WhitespaceSplit"}, split({"String": "b"}, "MergedWithNext", True), BYTE_LEVEL],
    {"type": "RobertaProcessing", "sep": ["a", 11], "cls": ["b", 12]}))
MARKED = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4, "b": 5, "▁a": 6, "ab": 7, "<0xC3>": 8, "<0xA9>": 9}
LLAMA = {
    "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>", lstrip=True)],
    "normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
    "pre_tokenizer": None,
    "post_processor": {"type": "TemplateProcessing",
                       "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                                  {"Sequence": {"id": "A", "type_id": 0}}],
                       "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
    "decoder": {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
        {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True,
              "vocab": MARKED, "merges": ["▁ a", "a b"]}}
write("tokenizer_json", "llama", LLAMA)
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
write("tokenizer_json", "metaspace", json.dumps(
    dict(LLAMA, normalizer=None, pre_tokenizer=METASPACE, decoder=METASPACE, post_processor=None),
    ensure_ascii=False) + "\0" + json.dumps(
        {"add_bos_token": True, "add_eos_token": True, "bos_token": {"content": "<s>"},
         "eos_token": "</s>", "added_tokens_decoder": {"2": {"content": "</s>", "special": True}}}))


def varint(value):
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def sentencepiece(model_type, extra=()):
    pieces = [("<unk>", 0, 2), ("<s>", 0, 3), ("</s>", 0, 3), ("▁", -3, 1), ("a", -4, 1), ("b", -4, 1),
              ("ab", -1, 1), ("▁a", -2, 1), ("abc", -3, 5), ("cat", 0, 4), *extra]
    model = b"".join(field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", score) +
                           b"\x18" + varint(kind)) for text, score, kind in pieces)
    byte_fallback = varint(35 << 3) + bytes([1 if extra else 0])
    return (b"\x00" + model + field(2, b"\x18" + varint(model_type) + byte_fallback) +
            field(3, b"\x18\x01\x20\x00"))


write("tokenizer_model", "unigram", sentencepiece(1))
write("tokenizer_model", "bpe", sentencepiece(2))
write("tokenizer_model", "bytes", sentencepiece(2, [(f"<0x{b:02X}>", 0, 6) for b in range(256)]))

write("chat_template", "turns", """{%- set ns = namespace(n=0) -%}
{{ bos_token }}{% for m in messages if m.role != 'x' %}{% set ns.n = ns.n + 1 %}
{%- if loop.first and m['role'] == 'system' %}<|s|>{{ m.content | trim }}{% else %}[{{ loop.index0 }}]{{ m.content[1:-1] }}{% endif %}
{% else %}none{% endfor %}{% if add_generation_prompt %}<|a|>{% endif %}{{ raise_exception('odd') if ns.n % 2 else '' }}""")
write("chat_template", "tools", """{% macro show(t, depth=0) %}{{ t | tojson(indent=2) }}{{ t.items() | list | length }}{% endmacro %}
{% for t in tools or [] %}{{ show(t.function) }}{{ t | string | upper | replace('F', 'g') }}{% break %}{% endfor %}
{% set parts = ['a', 'b'] | join(', ') %}{{ parts ~ 3 // 2 ~ 2 ** 3 ~ (1.5 | round) }}{{ 'x' * 3 in parts }}""")
write("chat_template", "given", "{% for m in messages %}{{ m.role.split('s') }}{{ m | dictsort }}{% endfor %}\0" +
      json.dumps([{"role": "user", "content": [{"type": "text", "text": "é"}], "n": [1, 2.5, None, True]}]))
