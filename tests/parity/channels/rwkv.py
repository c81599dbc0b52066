"""rwkv = RWKV-7's channel mixing in float64; RWKV-LM's start."""

import numpy as np
import torch

from arch.channels import rwkv as ours
from parity import Case, starts

SOURCE = "equations of RWKV-LM, RWKV-v7/train_temp/src/model.py, in float64"
CASES = [dict(length=19)]
START = [dict(dim=64, layer=0), dict(dim=64, layer=4)]
D, W, DEPTH = 12, 19, 6


class ChannelMix(torch.nn.Module):
  def __init__(self):
    super().__init__()
    self.x_k = torch.nn.Parameter(torch.empty(D))
    self.key = torch.nn.Linear(D, W, bias=False)
    self.value = torch.nn.Linear(W, D, bias=False)

  def forward(self, x):
    before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
    k = self.key(x + (before - x) * self.x_k)
    return self.value(torch.relu(k) ** 2)


def case(length):
  cfg = ours.Config(dim=D, depth=1, length=length, width=W)

  def weights(t):
    return {
      "mix": t["x_k"],
      "up": {"weight": t["key.weight"].T},
      "down": {"weight": t["value.weight"].T},
    }

  theirs = ChannelMix().double()
  return Case(ours.Channel, cfg, theirs, weights, length=length)


def start(dim, layer):
  """RWKV_CMix_x070 after generate_init_weight."""
  cfg = ours.Config(dim=dim, depth=DEPTH, length=8)

  def make(cfg, *, layer, rngs, at=layer):
    return ours.Channel(cfg, layer=layer + at, rngs=rngs)

  def draw():
    power = (1 - layer / DEPTH) ** 4
    return {
      "mix": np.float32([1 - (i / dim) ** power for i in range(dim)]),
      "up": {"weight": starts.orthogonal(dim, 4 * dim)},
      "down": {"weight": np.zeros((4 * dim, dim), np.float32)},
    }

  return make, cfg, draw
