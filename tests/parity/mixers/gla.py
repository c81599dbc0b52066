"""gla = the layer's equations around fla's naive_recurrent_gla."""

import numpy as np
import torch
from torch import nn

from arch.mixers import gla as ours
from parity import Case, Double, naive

SOURCE = (
  "fla naive_recurrent_gla, in a layer from arXiv 2312.06635, section 4.4"
)
CASES = [
  dict(length=70, dim=12, heads=2, rank=5),
  dict(length=19, dim=12, heads=3, rank=2, normaliser=4.0),
]
START = [dict(dim=96, heads=3)]


class Attention(nn.Module):
  def __init__(self, cfg):
    super().__init__()
    self.cfg, D = cfg, cfg.dim
    widths = dict(q=D // 2, k=D // 2, low=cfg.rank, v=D, z=D)
    maps = {n: nn.Linear(D, w, bias=False) for n, w in widths.items()}
    self.maps = nn.ModuleDict(maps)
    self.gate = nn.Linear(cfg.rank, D // 2)
    self.norm = nn.Parameter(torch.ones(cfg.V))
    self.out = nn.Linear(D, D, bias=False)

  def forward(self, u):
    q, k, low, v, z = (self.maps[n](u) for n in ("q", "k", "low", "v", "z"))
    g = nn.functional.logsigmoid(self.gate(low)) / self.cfg.normaliser
    q, k, v, g, z = (
      x.unflatten(-1, (self.cfg.heads, -1)) for x in (q, k, v, g, z)
    )
    with Double():
      o, _ = naive("gla/naive").naive_recurrent_gla(q, k, v, g)
    power = o.square().mean(-1, keepdim=True)
    o = o * (power + self.cfg.eps).rsqrt() * self.norm
    return self.out((o * nn.functional.silu(z)).flatten(2))


def weights(t):
  maps = [t[f"maps.{n}.weight"] for n in ("q", "k", "low", "v", "z")]
  return {
    "in_proj": {"weight": np.concatenate(maps, 0).T},
    "gate": {"weight": t["gate.weight"].T},
    "gate_bias": t["gate.bias"],
    "norm": {"weight": t["norm"]},
    "out_proj": {"weight": t["out.weight"].T},
  }


def case(length, **fields):
  cfg = ours.Config(depth=1, length=length, **fields)
  theirs = Attention(cfg).double()
  return Case(ours.Mixer, cfg, theirs, weights, length=length)


def start(**fields):
  cfg = ours.Config(depth=3, length=1, **fields)

  def draw():
    theirs = Attention(cfg)
    for m in (*(theirs.maps[n] for n in ("q", "k", "low")), theirs.gate):
      nn.init.xavier_uniform_(m.weight, gain=2**-2.5)
    named = theirs.named_parameters()
    return weights({name: p.detach().numpy() for name, p in named})

  return ours.Mixer, cfg, draw
