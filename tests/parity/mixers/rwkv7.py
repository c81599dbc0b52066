"""rwkv7 = fla's naive rule in RWKV-LM's layer, two of them; RWKV-LM's start.

Two, because the second one's values are mixed with the first one's.
"""

import dataclasses
import math

import numpy as np
import torch
from flax import nnx
from torch.nn import functional

from arch.mixers import rwkv7 as ours
from parity import Case, naive, starts

SOURCE = (
  "flash-linear-attention ops/generalized_delta_rule/dplr/naive.py, in the "
  "layer of RWKV-LM, RWKV-v7/train_temp/src/model.py; start: RWKV-LM"
)
CASES = [dict(length=19, head=6), dict(length=70, head=4)]
START = [dict(dim=64, layer=0), dict(dim=64, layer=4)]
D, DEPTH = 12, 6
RANKS = dict(w=5, a=3, v=2, g=7)
FIELDS = dict(decay_rank=5, rate_rank=3, value_rank=2, gate_rank=7)


class TimeMix(torch.nn.Module):
  def __init__(self, head, residual):
    super().__init__()
    self.head, self.residual = head, residual
    ranks = RANKS if residual else {n: RANKS[n] for n in "wag"}
    shapes = {f"x_{n}": [D] for n in "rwkvag"}
    shapes |= {f"{n}1": [D, r] for n, r in ranks.items()}
    shapes |= {f"{n}2": [r, D] for n, r in ranks.items()}
    shapes |= {f"{n}0": [D] for n in ranks if n != "g"}
    shapes |= {n: [D] for n in ("k_k", "k_a", "r_k")}
    for name, shape in shapes.items():
      setattr(self, name, torch.nn.Parameter(torch.empty(shape)))
    for name in ("receptance", "key", "value", "output"):
      setattr(self, name, torch.nn.Linear(D, D, bias=False))
    self.ln_x = torch.nn.GroupNorm(D // head, D, eps=1e-5 * head)
    self.rule = naive("generalized_delta_rule/dplr/naive").dplr_recurrence

  def forward(self, x, first):
    before = functional.pad(x, (0, 0, 1, -1))
    r, w, k, v, a, g = (
      x + (before - x) * getattr(self, f"x_{name}") for name in "rwkvag"
    )
    w = self.w0 + torch.tanh(w @ self.w1) @ self.w2
    log_w = -torch.exp(-functional.softplus(-w) - 0.5)
    a = torch.sigmoid(self.a0 + a @ self.a1 @ self.a2)
    g = torch.sigmoid(g @ self.g1) @ self.g2
    r, k, share, v = self.receptance(r), self.key(k), v, self.value(v)
    if self.residual:
      share = torch.sigmoid(self.v0 + share @ self.v1 @ self.v2)
      v = v + (first - v) * share
    else:
      first = v

    def heads(x):  # B H T K
      return x.unflatten(-1, (-1, self.head)).transpose(1, 2)

    kk = functional.normalize(heads(k * self.k_k), dim=-1)
    k = k * (1 + (a - 1) * self.k_a)
    r, k, values, a, log_w = map(heads, (r, k, v, a, log_w))
    # the rule divides its queries by sqrt(K)
    o, _ = self.rule(r * math.sqrt(self.head), k, values, -kk, kk * a, log_w)
    o = self.ln_x(o.transpose(1, 2).flatten(2).flatten(0, 1)).view(x.shape)
    bonus = (r * k * heads(self.r_k[None, None])).sum(-1, keepdim=True)
    o = o + (bonus * values).transpose(1, 2).flatten(2)
    return self.output(o * g), first


class Two(torch.nn.Module):
  def __init__(self, head):
    super().__init__()
    self.first, self.second = TimeMix(head, False), TimeMix(head, True)

  def forward(self, x):
    y, first = self.first(x, None)
    return y + self.second(x + y, first)[0]


class Ours(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    alone = dataclasses.replace(cfg, residual=False)
    self.first = ours.Mixer(alone, layer=layer, rngs=rngs)
    self.second = ours.Mixer(cfg, layer=layer + 1, rngs=rngs)

  def __call__(self, x, reset, state):
    y, _, aux = self.first(x, reset, None)
    return y + self.second(x + y, reset, None, **aux.stream)[0], None


def case(length, head):
  cfg = ours.Config(dim=D, depth=2, length=length, head=head, **FIELDS)

  def weights(t):
    return {name: layer(t, name) for name in ("first", "second")}

  return Case(Ours, cfg, Two(head), weights, length=length)


def layer(t, name):
  t = {k.removeprefix(f"{name}."): x for k, x in t.items()}

  def low_rank(n):
    made = {"down": {"weight": t[f"{n}1"]}, "up": {"weight": t[f"{n}2"]}}
    return made | ({"bias": t[f"{n}0"]} if f"{n}0" in t else {})

  made = {
    "mix": np.stack([t[f"x_{n}"] for n in "rwkvag"]),
    "r_proj": {"weight": t["receptance.weight"].T},
    "k_proj": {"weight": t["key.weight"].T},
    "v_proj": {"weight": t["value.weight"].T},
    "out_proj": {"weight": t["output.weight"].T},
    "decay": low_rank("w"),
    "rate": low_rank("a"),
    "gate": low_rank("g"),
    "k_k": t["k_k"],
    "k_a": t["k_a"],
    "r_k": t["r_k"],
    "norm": t["ln_x.weight"],
    "norm_bias": t["ln_x.bias"],
  }
  return made | ({"value": low_rank("v")} if "v0" in t else {})


def start(dim, layer):
  """RWKV_Tmix_x070 after generate_init_weight."""
  K = 16
  cfg = ours.Config(dim=dim, depth=DEPTH, length=8, head=K, residual=layer > 0)
  late, early = layer / (DEPTH - 1), 1 - layer / DEPTH

  def make(cfg, *, layer, rngs, at=layer):
    return ours.Mixer(cfg, layer=layer + at, rngs=rngs)

  def each(f):
    return np.float32([f(n) for n in range(dim)])

  def linear(n):
    return n / (dim - 1) - 0.5

  def zigzag(n):
    z = (n % K - (K - 1) / 2) / ((K - 1) / 2)
    return z * abs(z)

  def low_rank(factor, bias=None):
    rank = max(32, int(round(factor * dim**0.5 / 32) * 32))
    gain = 0.1 * (math.sqrt(rank / dim) if rank > dim else 1)
    made = {
      "down": {"weight": np.zeros((dim, rank), np.float32)},
      "up": {"weight": starts.orthogonal(rank, dim, gain)},
    }
    return made if bias is None else made | {"bias": each(bias)}

  def decay(n):
    www = -6 + 6 * (n / (dim - 1)) ** (1 + late**0.3)
    return www + 0.5 + 2.5 * zigzag(n)

  def draw():
    powers = (0.2, 0.9, 0.7, 0.7, 0.9, 0.2)
    mix = [each(lambda n, p=p: 1 - (n / dim) ** (p * early)) for p in powers]
    made = {
      "mix": np.stack(mix),
      "r_proj": {"weight": starts.orthogonal(dim, dim)},
      "k_proj": {"weight": starts.orthogonal(dim, dim, 0.1)},
      "v_proj": {"weight": starts.orthogonal(dim, dim)},
      "out_proj": {"weight": np.zeros((dim, dim), np.float32)},
      "decay": low_rank(2.5, decay),
      "rate": low_rank(
        2.5, lambda n: -0.19 + 0.3 * zigzag(n) + 0.4 * linear(n)
      ),
      "gate": low_rank(5),
      "k_k": each(lambda n: 0.71 - 0.1 * linear(n)),
      "k_a": each(lambda n: 1.02),
      "r_k": each(lambda n: -0.04),
      "norm": each(lambda n: ((1 + layer) / DEPTH) ** 0.7),
      "norm_bias": each(lambda n: 0),
    }
    if layer > 0:
      made["value"] = low_rank(1.7, lambda n: 0.73 - 0.4 * linear(n))
    return made

  return make, cfg, draw
