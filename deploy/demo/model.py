"""A Llama with the tensor names of its Hugging Face layout, and its files."""

import math
import os

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from config import GENERATION_CONFIG, write_json
from lookups import ANSWER, TEMPLATE, TEXT


class RMSNorm(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.eps = config["rms_norm_eps"]
        self.weight = nn.Parameter(torch.ones(config["hidden_size"]))

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return (y * self.weight).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.head_dim = config["head_dim"]
        hidden, kv = config["hidden_size"], self.kv_heads * self.head_dim
        self.q_proj = nn.Linear(hidden, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(hidden, kv, bias=False)
        self.v_proj = nn.Linear(hidden, kv, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, hidden, bias=False)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        hd = self.head_dim
        q = self.q_proj(x).view(b, t, self.heads, hd).transpose(1, 2)
        k = self.k_proj(x).view(b, t, self.kv_heads, hd).transpose(1, 2)
        v = self.v_proj(x).view(b, t, self.kv_heads, hd).transpose(1, 2)

        def rope(u):
            half = torch.cat((-u[..., hd // 2:], u[..., :hd // 2]), -1)
            return (u * cos + half * sin).to(v.dtype)

        group = self.heads // self.kv_heads
        y = F.scaled_dot_product_attention(rope(q), rope(k).repeat_interleave(group, 1),
                                           v.repeat_interleave(group, 1), is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, self.heads * hd))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config, dropout):
        super().__init__()
        self.dropout = dropout
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config)
        self.post_attention_layernorm = RMSNorm(config)

    def forward(self, x, cos, sin):
        x = x + F.dropout(self.self_attn(self.input_layernorm(x), cos, sin), self.dropout, self.training)
        return x + F.dropout(self.mlp(self.post_attention_layernorm(x)), self.dropout, self.training)


class Body(nn.Module):
    def __init__(self, config, dropout):
        super().__init__()
        self.head_dim, self.theta = config["head_dim"], config["rope_theta"]
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(Layer(config, dropout) for _ in range(config["num_hidden_layers"]))
        self.norm = RMSNorm(config)

    def forward(self, ids):
        inv = self.theta ** (-torch.arange(0, self.head_dim, 2, device=ids.device).float() / self.head_dim)
        angle = torch.arange(ids.shape[1], device=ids.device).float()[:, None] * inv
        angle = torch.cat((angle, angle), -1)
        cos, sin = angle.cos(), angle.sin()
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)


class Llama(nn.Module):
    def __init__(self, config, dropout=0.0):
        super().__init__()
        self.model = Body(config, dropout)
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


def best_device():
    return "cuda" if torch.cuda.is_available() else "cpu"


def autocast(device):
    """What a model is to be run in: bfloat16 on a GPU, float32 on a CPU."""
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")


def save(model, config, out):
    tensors = {n: p.detach().to(torch.bfloat16).cpu().contiguous() for n, p in model.named_parameters()}
    save_file(tensors, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    write_json(os.path.join(out, "config.json"), config)
    write_json(os.path.join(out, "generation_config.json"), GENERATION_CONFIG)


def load(model, out):
    model.load_state_dict({n: t.float() for n, t in
                           load_file(os.path.join(out, "model.safetensors")).items()})
