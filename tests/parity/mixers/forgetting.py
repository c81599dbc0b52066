"""forgetting = naive_forgetting_attn of flash-linear-attention, in a layer."""

import numpy as np
import torch

from arch.mixers import forgetting as ours
from parity import Case, naive, starts

SOURCE = "fla-core naive_forgetting_attn, in a layer of the paper"
CASES = [
  dict(kv_heads=2, window=None, length=150),
  dict(kv_heads=4, window=13, length=70),
]
START = [dict(dim=96)]
D, H, K = 12, 4, 6


class Theirs(torch.nn.Module):
  def __init__(self, G, window):
    super().__init__()
    self.G, self.window = G, window
    self.q, self.k, self.v = (
      torch.nn.Linear(D, heads * K, bias=False) for heads in (H, G, G)
    )
    self.f = torch.nn.Linear(D, H)
    self.o = torch.nn.Linear(H * K, D, bias=False)

  def forward(self, x):
    q, k, v = (m(x).unflatten(-1, (-1, K)) for m in (self.q, self.k, self.v))
    g = torch.nn.functional.logsigmoid(self.f(x))
    attn = naive("forgetting_attn/naive").naive_forgetting_attn
    return self.o(attn(q, k, v, g, window_size=self.window).flatten(2))


def weights(t):
  qkv = [t[f"{n}.weight"] for n in "qkv"]
  return {
    "qkv": {"weight": np.concatenate(qkv, 0).T},
    "forget": {"weight": t["f.weight"].T},
    "forget_bias": t["f.bias"],
    "out_proj": {"weight": t["o.weight"].T},
  }


def case(kv_heads, window, length):
  cfg = ours.Config(
    dim=D,
    depth=1,
    length=length,
    head=K,
    heads=H,
    kv_heads=kv_heads,
    window=window,
  )
  theirs = Theirs(kv_heads, window)
  return Case(ours.Mixer, cfg, theirs, weights, length=length)


def start(dim):
  normal = starts.normal

  def draw():
    return {
      "qkv": {"weight": normal(dim, 3 * dim)},
      "forget": {"weight": normal(dim, 6)},
      "forget_bias": np.zeros(6),
      "out_proj": {"weight": normal(dim, dim)},
    }

  return ours.Mixer, ours.Config(dim=dim, depth=3, length=8, head=16), draw
