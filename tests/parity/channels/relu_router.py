"""relu_router = a loop over experts, as ReMoE's equations have it."""

import numpy as np
import torch
from torch import nn

from arch.channels import relu_router as ours
from parity import Case

SOURCE = (
  "ReMoE (2412.14711), eq. 7 and 8, in torch; Llama's MLP for each expert"
)
CASES = [dict(length=19, shared=0), dict(length=19, shared=9)]
# the router's is the house's, as that of experts
START = []
D, W, E = 12, 5, 4


class Theirs(nn.Module):
  """y = sum_e relu(x R)_e ffn_e(x), in float64."""

  def __init__(self, shared):
    super().__init__()

    def maps(width):
      return nn.ModuleList(
        nn.Linear(*shape, bias=False)
        for shape in ((D, width), (D, width), (width, D))
      )

    self.router = nn.Linear(D, E, bias=False)
    self.experts = nn.ModuleList(maps(W) for _ in range(E))
    self.shared = maps(shared) if shared else None
    self.double()

  def gates(self, x):
    return torch.relu(self.router(x))

  def forward(self, x):
    def run(maps, x):
      gate, up, down = maps
      return down(nn.functional.silu(gate(x)) * up(x))

    g = self.gates(x)
    own = (g[..., e : e + 1] * run(self.experts[e], x) for e in range(E))
    y = sum(own)
    return y + run(self.shared, x) if self.shared is not None else y


def weights(t):
  names = ("gate", "up", "down")
  made = {
    name: {
      "weight": np.stack([t[f"experts.{e}.{i}.weight"].T for e in range(E)])
    }
    for i, name in enumerate(names)
  }
  made["router"] = t["router.weight"].T
  if "shared.0.weight" in t:
    made["shared"] = {
      name: {"weight": t[f"shared.{i}.weight"].T}
      for i, name in enumerate(names)
    }
  return made


def config(module, length, shared):
  return module.Config(
    dim=D,
    depth=1,
    length=length,
    experts=E,
    top=2,
    most=E,
    width=W,
    shared=shared,
  )


def case(length, shared):
  cfg = config(ours, length, shared)
  return Case(ours.Channel, cfg, Theirs(shared), weights, length=length)
