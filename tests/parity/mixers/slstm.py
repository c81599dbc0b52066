"""slstm = the equations of the xLSTM paper in the layer of NX-AI/xlstm."""

import math

import numpy as np
import torch

from arch.mixers import slstm as ours
from parity import Case

SOURCE = (
  "a float64 loop of arXiv 2405.04517, eq. 8 to 17 and figure of the block"
)
CASES = [dict(length=70, heads=3), dict(length=19, heads=1)]
START = [
  dict(layer=0, depth=1),
  dict(layer=1, depth=3),
  dict(layer=2, depth=3, recurrent="uniform"),
]
D = 6
GATES = "ifzo"


class Layer(torch.nn.Module):
  def __init__(self, dim, heads, taps):
    super().__init__()
    K = dim // heads
    self.heads, self.taps = heads, taps
    for gate in GATES:
      W = torch.randn(heads, K, K) * math.sqrt(2 / (5 * dim))
      self.register_parameter(f"W_{gate}", torch.nn.Parameter(W))
      R = torch.zeros(heads, K, K)
      self.register_parameter(f"R_{gate}", torch.nn.Parameter(R))
      b = torch.zeros(heads, K)
      self.register_parameter(f"b_{gate}", torch.nn.Parameter(b))
    self.conv = torch.nn.Conv1d(dim, dim, taps, groups=dim, padding=taps - 1)
    self.norm = torch.nn.Parameter(torch.zeros(dim))

  def forward(self, x):
    B, T, dim = x.shape
    u = torch.nn.functional.silu(self.conv(x.mT)[..., :T].mT)
    inputs = dict(i=u, f=u, z=x, o=x)
    split = {k: v.view(B, T, self.heads, -1) for k, v in inputs.items()}
    wx = {
      k: torch.einsum("bthk,hkj->bthj", split[k], getattr(self, f"W_{k}"))
      for k in GATES
    }
    h = c = n = x.new_zeros(B, self.heads, dim // self.heads)
    m = torch.full_like(h, -torch.inf)
    hs = []
    for t in range(T):
      i, f, z, o = (
        wx[k][:, t]
        + torch.einsum("bhk,hkj->bhj", h, getattr(self, f"R_{k}"))
        + getattr(self, f"b_{k}")
        for k in GATES
      )
      log_f = torch.nn.functional.logsigmoid(f)
      new = torch.maximum(log_f + m, i)
      f, i, m = torch.exp(log_f + m - new), torch.exp(i - new), new
      c = f * c + i * torch.tanh(z)
      n = f * n + i
      h = torch.sigmoid(o) * (c / n)
      hs.append(h)
    h = torch.stack(hs, 1).reshape(B * T, dim)
    y = torch.nn.functional.group_norm(h, self.heads, 1 + self.norm)
    return y.view(B, T, dim)


def weights(t):
  def join(kind, gates):
    return np.concatenate([t[f"{kind}_{gate}"] for gate in gates], -1)

  return {
    "conv": {"weight": t["conv.weight"][:, 0].T, "bias": t["conv.bias"]},
    "if_proj": join("W", "if"),
    "zo_proj": join("W", "zo"),
    "R": join("R", GATES),
    "bias": join("b", GATES),
    "norm": t["norm"],
  }


def case(length, heads):
  cfg = ours.Config(dim=D, depth=1, length=length, heads=heads, conv=3)
  theirs = Layer(D, heads, 3).double()
  return Case(ours.Mixer, cfg, theirs, weights, length=length)


def start(layer, depth, recurrent="zeros"):
  """powerlaw_blockdependent of NX-AI/xlstm, blocks/slstm/cell.py."""
  cfg = ours.Config(dim=96, depth=depth, length=8, heads=4, recurrent=recurrent)

  number = np.int32(layer)

  def make(cfg, *, layer, rngs):
    return ours.Mixer(cfg, layer=number, rngs=rngs)

  def draw():
    own = Layer(cfg.dim, cfg.heads, cfg.conv)
    ratio = layer / (depth - 1) if depth > 1 else 0.0
    steps = torch.arange(cfg.K) / (cfg.K - 1)
    with torch.no_grad():
      own.b_f.copy_(-(-5.0 + 12.0 * steps ** (0.3 + 1.3 * ratio)))
      for gate in GATES if recurrent == "uniform" else "":
        bound = cfg.dim**-0.5
        getattr(own, f"R_{gate}").uniform_(-bound, bound)
    return weights({k: p.detach().numpy() for k, p in own.named_parameters()})

  return make, cfg, draw
