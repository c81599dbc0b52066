"""retnet = the layer's equations around fla's naive_retention."""

import numpy as np
import torch
from torch import nn

from arch.mixers import retnet as ours
from parity import Case, Double, naive

SOURCE = "fla naive_retention, in a layer from arXiv 2307.08621, eq. 5-8"
CASES = [
  dict(length=70, dim=12, head=4, expand=2),
  dict(length=19, dim=12, head=2, expand=3),
]
START = [dict(dim=96, head=32)]


class Retention(nn.Module):
  def __init__(self, cfg):
    super().__init__()
    self.H, self.K, self.eps = cfg.H, cfg.head, cfg.eps
    E = cfg.expand * cfg.dim
    widths = dict(q=cfg.dim, k=cfg.dim, v=E, z=E)
    maps = {n: nn.Linear(cfg.dim, w, bias=False) for n, w in widths.items()}
    self.maps = nn.ModuleDict(maps)
    self.norm = nn.Parameter(torch.ones(E // self.H))
    self.out = nn.Linear(E, cfg.dim, bias=False)

  def turned(self, x):
    """Halves of B H T K turned against each other by t / 10000^(2i / K)."""
    T, K = x.shape[2:]
    rates = 10_000.0 ** (-torch.arange(0, K, 2, dtype=x.dtype) / K)
    angle = torch.arange(T)[:, None] * rates
    a, b = x.chunk(2, -1)
    sin, cos = angle.sin(), angle.cos()
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

  def forward(self, u):
    q, k, v, z = (
      self.maps[n](u).unflatten(-1, (self.H, -1)).transpose(1, 2)
      for n in "qkvz"
    )
    q, k = self.turned(q), self.turned(k)
    with Double():
      o = naive("retention/naive").naive_retention(q, k, v)
    power = o.square().mean(-1, keepdim=True)
    o = o * (power + self.eps).rsqrt() * self.norm * nn.functional.silu(z)
    return self.out(o.transpose(1, 2).flatten(2))


def weights(t):
  maps = [t[f"maps.{n}.weight"] for n in "qkvz"]
  return {
    "in_proj": {"weight": np.concatenate(maps, 0).T},
    "norm": {"weight": t["norm"]},
    "out_proj": {"weight": t["out.weight"].T},
  }


def case(length, **fields):
  cfg = ours.Config(depth=1, length=length, **fields)
  theirs = Retention(cfg).double()
  return Case(ours.Mixer, cfg, theirs, weights, length=length)


def start(**fields):
  cfg = ours.Config(depth=3, length=1, **fields)

  def draw():
    theirs = Retention(cfg)
    for m in theirs.maps.values():
      nn.init.xavier_uniform_(m.weight, gain=2**-2.5)
    nn.init.xavier_uniform_(theirs.out.weight, gain=2**-1)
    named = theirs.named_parameters()
    return weights({name: p.detach().numpy() for name, p in named})

  return ours.Mixer, cfg, draw
