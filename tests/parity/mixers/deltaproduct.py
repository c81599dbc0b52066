"""deltaproduct = fla's naive gated delta product in its layer; fla's start."""

import numpy as np
import torch
from torch.nn import functional

from arch.mixers import deltaproduct as ours
from parity import Case, naive, starts
from parity.mixers.deltanet import convolved, short_conv, unit

SOURCE = "flash-linear-attention ops/gated_delta_product/naive.py, in its layer"
CASES = [
  dict(length=19, heads=3, key_heads=3, steps=3, neg_eigval=False),
  dict(length=70, heads=4, key_heads=2, steps=2, neg_eigval=True),
  dict(length=37, heads=3, key_heads=1, steps=2, neg_eigval=True, decay=False),
]
START = [dict(dim=128, steps=2)]
D, K, V = 12, 4, 8


class GatedDeltaProduct(torch.nn.Module):
  def __init__(self, heads, key_heads, steps, neg_eigval, decay=True):
    super().__init__()
    self.heads, self.steps, self.decay = heads, steps, decay
    self.group, self.top = heads // key_heads, 2 if neg_eigval else 1
    widths = dict(q=key_heads * K, k=steps * key_heads * K, v=steps * heads * V)
    for name, width in widths.items():
      setattr(self, f"{name}_conv", short_conv(width, 3))
    widths |= dict(g=heads * V, b=steps * heads)
    if decay:
      widths["a"] = heads
      self.A_log = torch.nn.Parameter(torch.empty(heads))
      self.dt_bias = torch.nn.Parameter(torch.empty(heads))
    for name, width in widths.items():
      setattr(self, f"{name}_proj", torch.nn.Linear(D, width, bias=False))
    self.o_proj = torch.nn.Linear(heads * V, D, bias=False)
    self.norm = torch.nn.RMSNorm(V, eps=1e-5)
    file = naive("gated_delta_product/naive")
    self.rule = file.naive_recurrent_gated_delta_product

  def forward(self, x):
    B, T, _ = x.shape

    def part(name, steps, width):
      y = getattr(self, f"{name}_proj")(x)
      y = convolved(getattr(self, f"{name}_conv"), y)
      return y.reshape(B, steps * T, -1, width)

    n = self.steps
    q, k = unit(part("q", 1, K)), unit(part("k", n, K))
    q, k = (t.repeat_interleave(self.group, 2) for t in (q, k))
    beta = self.top * self.b_proj(x).sigmoid().reshape(B, n * T, -1)
    g = torch.zeros(B, T, self.heads)
    if self.decay:
      step = functional.softplus(self.a_proj(x) + self.dt_bias)
      g = -self.A_log.exp() * step
    o, _ = self.rule(q, k, part("v", n, V), g, beta, K**-0.5, num_householder=n)
    z = self.g_proj(x).unflatten(-1, (-1, V))
    return self.o_proj((self.norm(o) * functional.silu(z)).flatten(2))


def case(length, **fields):
  cfg = ours.Config(dim=D, depth=1, length=length, head=K, conv=3, **fields)

  def weights(t):
    def joined(names, kind):
      return np.concatenate([t[f"{n}_{kind}.weight"] for n in names], 0)

    decay = {k: t[k] for k in ("dt_bias", "A_log") if k in t}
    return decay | {
      "in_proj": {"weight": joined("qkvg", "proj").T},
      "gates": {"weight": joined("ba" if decay else "b", "proj").T},
      "conv": {"weight": joined("qkv", "conv")[:, 0].T},
      "norm": {"weight": t["norm.weight"]},
      "out_proj": {"weight": t["o_proj.weight"].T},
    }

  theirs = GatedDeltaProduct(**fields)
  return Case(ours.Mixer, cfg, theirs, weights, length=length)


def start(dim, steps):
  """models/gated_deltaproduct over layers/gated_deltaproduct.py."""
  H, K, n = 48, 2, steps
  V = 2 * K
  cfg = ours.Config(dim=dim, depth=6, length=8, heads=H, head=K, steps=n)
  inner = H * ((1 + n) * K + n * V)

  def draw():
    return {
      "in_proj": {"weight": starts.normal(dim, inner + H * V)},
      "gates": {"weight": starts.normal(dim, (n + 1) * H)},
      "conv": {"weight": starts.normal(4, inner)},
      "dt_bias": starts.dt_bias(H),
      "A_log": starts.uniform(0, 16, H).log().numpy(),
      "norm": {"weight": np.ones(V, np.float32)},
      "out_proj": {"weight": starts.normal(H * V, dim)},
    }

  return ours.Mixer, cfg, draw
