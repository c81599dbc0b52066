"""rwkv = RWKV-7's and RWKV-6's channel mixing in float64; RWKV-LM's start."""

import numpy as np
import torch

from arch.channels import rwkv as ours
from parity import Case, starts

SOURCE = "equations of RWKV-LM, RWKV-v7 and RWKV-v5/src/model.py, in float64"
CASES = [dict(length=19, receptance=False), dict(length=19, receptance=True)]
START = [
  dict(dim=64, layer=0, receptance=False),
  dict(dim=64, layer=4, receptance=False),
  dict(dim=64, layer=4, receptance=True),
]
D, W, DEPTH = 12, 19, 6


class ChannelMix(torch.nn.Module):
  def __init__(self, receptance):
    super().__init__()
    self.x_k = torch.nn.Parameter(torch.empty(D))
    self.key = torch.nn.Linear(D, W, bias=False)
    self.value = torch.nn.Linear(W, D, bias=False)
    self.receptance = None
    if receptance:
      self.x_r = torch.nn.Parameter(torch.empty(D))
      self.receptance = torch.nn.Linear(D, D, bias=False)

  def forward(self, x):
    before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
    k = self.key(x + (before - x) * self.x_k)
    y = self.value(torch.relu(k) ** 2)
    if self.receptance is None:
      return y
    return torch.sigmoid(self.receptance(x + (before - x) * self.x_r)) * y


def case(length, receptance):
  cfg = ours.Config(
    dim=D, depth=1, length=length, width=W, receptance=receptance
  )

  def weights(t):
    found = {
      "mix": t["x_k"],
      "up": {"weight": t["key.weight"].T},
      "down": {"weight": t["value.weight"].T},
    }
    if receptance:
      found["mix_r"] = t["x_r"]
      found["receptance"] = {"weight": t["receptance.weight"].T}
    return found

  theirs = ChannelMix(receptance).double()
  return Case(ours.Channel, cfg, theirs, weights, length=length)


def start(dim, layer, receptance):
  """RWKV_CMix_x070 or x060 after generate_init_weight."""
  cfg = ours.Config(dim=dim, depth=DEPTH, length=8, receptance=receptance)

  def make(cfg, *, layer, rngs, at=layer):
    return ours.Channel(cfg, layer=layer + at, rngs=rngs)

  def draw():
    power = (1 - layer / DEPTH) ** (3 if receptance else 4)
    mix = np.float32([1 - (i / dim) ** power for i in range(dim)])
    found = {
      "mix": mix,
      "up": {"weight": starts.orthogonal(dim, 4 * dim)},
      "down": {"weight": np.zeros((4 * dim, dim), np.float32)},
    }
    if receptance:
      found["mix_r"] = mix
      found["receptance"] = {"weight": np.zeros((dim, dim), np.float32)}
    return found

  return make, cfg, draw
