"""deltanet = fla's naive delta rule in fla's layer; fla's start."""

import numpy as np
import torch
from torch.nn import functional

from arch.mixers import deltanet as ours
from parity import Case, naive, starts

SOURCE = "flash-linear-attention ops/delta_rule/naive.py, in its layer"
CASES = [
  dict(length=19, head=4, conv=3, neg_eigval=False),
  dict(length=70, head=6, conv=4, neg_eigval=True),
]
START = [dict(dim=128)]
D = 12


def short_conv(dim, width):
  return torch.nn.Conv1d(
    dim, dim, width, groups=dim, padding=width - 1, bias=False
  )


def convolved(conv, x):
  """silu of a causal convolution, B T D."""
  return functional.silu(conv(x.mT)[..., : x.shape[1]].mT)


def unit(x):
  return x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-6)


class DeltaNet(torch.nn.Module):
  def __init__(self, head, conv, neg_eigval):
    super().__init__()
    self.head, self.top = head, 2 if neg_eigval else 1
    for name in "qkvo":
      setattr(self, f"{name}_proj", torch.nn.Linear(D, D, bias=False))
    for name in "qkv":
      setattr(self, f"{name}_conv", short_conv(D, conv))
    self.b_proj = torch.nn.Linear(D, D // head, bias=False)
    self.norm = torch.nn.RMSNorm(head, eps=1e-5)
    self.rule = naive("delta_rule/naive").delta_rule_recurrence

  def forward(self, x):
    q, k, v = (
      convolved(getattr(self, f"{name}_conv"), getattr(self, f"{name}_proj")(x))
      .unflatten(-1, (-1, self.head))
      .transpose(1, 2)
      for name in "qkv"
    )
    beta = self.top * self.b_proj(x).sigmoid().mT
    o, _ = self.rule(unit(q), unit(k), v, beta)
    return self.o_proj(self.norm(o.transpose(1, 2)).flatten(2))


def case(length, **fields):
  cfg = ours.Config(dim=D, depth=1, length=length, **fields)

  def weights(t):
    qkv = [t[f"{n}_proj.weight"] for n in "qkv"]
    convs = [t[f"{n}_conv.weight"][:, 0] for n in "qkv"]
    return {
      "qkv": {"weight": np.concatenate(qkv, 0).T},
      "beta": {"weight": t["b_proj.weight"].T},
      "conv": {"weight": np.concatenate(convs, 0).T},
      "norm": {"weight": t["norm.weight"]},
      "out_proj": {"weight": t["o_proj.weight"].T},
    }

  return Case(ours.Mixer, cfg, DeltaNet(**fields), weights, length=length)


def start(dim):
  """models/delta_net over layers/delta_net.py."""
  cfg = ours.Config(dim=dim, depth=6, length=8, head=4)

  def draw():
    return {
      "qkv": {"weight": starts.normal(dim, 3 * dim)},
      "beta": {"weight": starts.normal(dim, dim // 4)},
      "conv": {"weight": starts.normal(4, 3 * dim)},
      "norm": {"weight": np.ones(4, np.float32)},
      "out_proj": {"weight": starts.normal(dim, dim)},
    }

  return ours.Mixer, cfg, draw
