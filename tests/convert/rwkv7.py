"""RWKV-7 from its paper's equations, under flash-linear-attention's names.

Peng et al. 2025, https://arxiv.org/abs/2503.14456, section 4.
"""

import json
import types

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from convert import T, V

D, DEPTH = 12, 3
RANKS = dict(decay=5, a=3, v=2, gate=7)


def before(x):
  return functional.pad(x, (0, 0, 1, -1))


class LowRank(nn.Module):
  def __init__(self, rank, f, bias=True):
    super().__init__()
    maps = nn.Linear(D, rank, bias=False), nn.Linear(rank, D, bias=bias)
    self.lora = nn.Sequential(maps[0], f, maps[1])

  def forward(self, x):
    return self.lora(x)


class TimeMix(nn.Module):
  def __init__(self, head, eps, first, old):
    super().__init__()
    self.head, self.first, self.old = head, first, old
    if old:
      self.x_x = nn.Parameter(torch.rand(6, D))
    else:
      for n in "rwkvag":
        setattr(self, f"x_{n}", nn.Parameter(torch.rand(1, 1, D)))
    self.k_k = nn.Parameter(torch.ones(D))
    self.k_a = nn.Parameter(torch.ones(D))
    self.r_k = nn.Parameter(torch.zeros(D // head, head))
    for n in "rkvo":
      setattr(self, f"{n}_proj", nn.Linear(D, D, bias=False))
    self.w_lora = LowRank(RANKS["decay"], nn.Tanh())
    self.a_lora = LowRank(RANKS["a"], nn.Identity())
    self.g_lora = LowRank(RANKS["gate"], nn.Sigmoid(), bias=False)
    if not first:
      self.v_lora = LowRank(RANKS["v"], nn.Identity())
    self.g_norm = nn.GroupNorm(D // head, D, eps=head * eps)

  def forward(self, x, v_first):
    mixes = (
      self.x_x if self.old else [getattr(self, f"x_{n}") for n in "rwkvag"]
    )
    x_r, x_w, x_k, x_v, x_a, x_g = (x + (before(x) - x) * m for m in mixes)
    r, k, v = self.r_proj(x_r), self.k_proj(x_k), self.v_proj(x_v)
    w = torch.exp(-torch.sigmoid(self.w_lora(x_w)) / torch.e**0.5)
    a = torch.sigmoid(self.a_lora(x_a))
    if self.first:
      v_first = v
    else:
      v = torch.lerp(v, v_first, torch.sigmoid(self.v_lora(x_v)))

    def heads(x):  # B T H K
      return x.unflatten(-1, (-1, self.head))

    kk = functional.normalize(heads(k * self.k_k), dim=-1)
    k = k * (1 + (a - 1) * self.k_a)
    r, w, k, values, a = map(heads, (r, w, k, v, a))
    outputs = []
    S = torch.zeros(*r.shape[:1], *r.shape[2:], self.head)  # B H V K
    for t in range(x.shape[1]):
      read = S @ kk[:, t, :, :, None]
      S = S * w[:, t, :, None]
      S = S - read * (a * kk)[:, t, :, None]
      S = S + values[:, t, :, :, None] * k[:, t, :, None]
      outputs.append(S @ r[:, t, :, :, None])
    o = torch.stack(outputs, 1).flatten(2)
    o = self.g_norm(o.flatten(0, 1)).view(x.shape)
    bonus = (r * k * self.r_k).sum(-1, keepdim=True) * values
    return self.o_proj((o + bonus.flatten(2)) * self.g_lora(x_g)), v_first


class ChannelMix(nn.Module):
  def __init__(self, width):
    super().__init__()
    self.x_k = nn.Parameter(torch.rand(D))
    self.key = nn.Linear(D, width, bias=False)
    self.value = nn.Linear(width, D, bias=False)

  def forward(self, x):
    k = self.key(x + (before(x) - x) * self.x_k)
    return self.value(torch.relu(k) ** 2)


class Layer(nn.Module):
  def __init__(self, config, head, width, first, old):
    super().__init__()
    eps = config["norm_eps"]
    norm = config["norm_first"] and first
    self.pre_norm = nn.LayerNorm(D, eps=eps) if norm else nn.Identity()
    self.attn_norm = nn.LayerNorm(D, eps=eps)
    self.attn = TimeMix(head, eps, first, old)
    self.ffn_norm = nn.LayerNorm(D, eps=eps)
    self.ffn = ChannelMix(width)

  def forward(self, x, v_first):
    x = self.pre_norm(x)
    y, v_first = self.attn(self.attn_norm(x), v_first)
    x = x + y
    return x + self.ffn(self.ffn_norm(x)), v_first


class Model(nn.Module):
  """`head` and `width` are what the config's fields should come to."""

  def __init__(self, head, width, old=False, **fields):
    super().__init__()
    self.config = config = dict(
      model_type="rwkv7",
      hidden_size=D,
      num_hidden_layers=DEPTH,
      hidden_act="sqrelu",
      max_position_embeddings=T,
      norm_first=True,
      norm_bias=True,
      norm_eps=1e-5,
      attn=None,
      vocab_size=V,
      bos_token_id=1,
      tie_word_embeddings=False,
      **{f"{n}_low_rank_dim": rank for n, rank in RANKS.items()},
    )
    config |= fields
    self.model = nn.Module()
    self.model.embeddings = nn.Embedding(V, D)
    self.model.layers = nn.ModuleList(
      Layer(config, head, width, i == 0, old) for i in range(DEPTH)
    )
    self.model.norm = nn.LayerNorm(D, eps=config["norm_eps"])
    self.lm_head = nn.Linear(D, V, bias=False)
    if config["tie_word_embeddings"]:
      self.lm_head.weight = self.model.embeddings.weight

  def forward(self, tokens):
    x, v_first = self.model.embeddings(tokens), None
    for layer in self.model.layers:
      x, v_first = layer(x, v_first)
    return types.SimpleNamespace(logits=self.lm_head(self.model.norm(x)))

  def save_pretrained(self, path):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(self.config))
    tensors = {n: p.data for n, p in self.named_parameters()}  # a tied one once
    save_file(tensors, path / "model.safetensors")


CASES = {
  "plain": lambda: Model(
    head=4,
    width=19,
    head_dim=4,
    num_heads=3,
    intermediate_size=19,
    value_dim=[D] * DEPTH,
  ),
  "tied, no first norm": lambda: Model(
    head=6,
    width=32,
    head_dim=None,
    num_heads=2,
    hidden_ratio=1.5,
    norm_first=False,
    norm_eps=1e-2,
    tie_word_embeddings=True,
  ),
  "mixes in one": lambda: Model(head=3, width=64, head_dim=3, old=True),
}
NO_CACHE = tuple(CASES)
