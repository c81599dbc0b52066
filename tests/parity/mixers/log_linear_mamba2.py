"""log_linear_mamba2 = naive_log_linear_attn of fla in the block of Mamba-2."""

import math

import numpy as np
import torch
from torch.nn import functional as F

from arch.mixers import log_linear_mamba2 as ours
from parity import Case, naive, starts

SOURCE = "fla-core naive_log_linear_attn, in Mamba-2's block (float64)"
CASES = [
  dict(length=70, groups=2),
  dict(length=19, groups=1, chunk=8),
]
START = [dict(dim=64)]
D = 12


class Theirs(torch.nn.Module):
  def __init__(self, cfg, levels):
    super().__init__()
    E, H, N = cfg.E, cfg.H, cfg.groups * cfg.state
    self.cfg, self.sizes = cfg, (E, E + 2 * N, H, H * levels)
    self.in_proj = torch.nn.Linear(cfg.dim, sum(self.sizes), bias=False)
    self.conv1d = torch.nn.Conv1d(
      E + 2 * N, E + 2 * N, cfg.conv, groups=E + 2 * N, padding=cfg.conv - 1
    )
    self.dt_bias = torch.nn.Parameter(torch.empty(H))
    self.A_log = torch.nn.Parameter(torch.empty(H))
    self.L = torch.nn.Parameter(torch.empty(H, levels))
    self.D = torch.nn.Parameter(torch.empty(H))
    self.norm = torch.nn.Parameter(torch.empty(E))
    self.out_proj = torch.nn.Linear(E, cfg.dim, bias=False)

  def forward(self, u):
    cfg = self.cfg
    B, T, _ = u.shape
    E, N, H = cfg.E, cfg.groups * cfg.state, cfg.H
    z, xbc, dt, dl = self.in_proj(u).split(self.sizes, -1)
    xbc = F.silu(self.conv1d(xbc.mT)[..., :T].mT)
    x, b, c = xbc.split((E, N, N), -1)
    x = x.reshape(B, T, H, cfg.head)
    b, c = (t.reshape(B, T, cfg.groups, cfg.state) for t in (b, c))
    dt = F.softplus(dt + self.dt_bias)
    scales = F.softplus(self.L * dl.reshape(B, T, *self.L.shape))
    y = naive("log_linear_attn/naive").naive_log_linear_attn(
      c, b, x * dt[..., None], -self.A_log.exp() * dt, scales
    )
    y = (y + self.D[:, None] * x).reshape(B, T, E) * F.silu(z)
    y = y * (y.square().mean(-1, keepdim=True) + cfg.eps).rsqrt() * self.norm
    return self.out_proj(y)


def case(length, groups, chunk=64):
  levels = math.ceil(math.log2(length)) + 1
  cfg = ours.Config(
    dim=D,
    depth=1,
    length=length,
    state=5,
    head=4,
    groups=groups,
    conv=3,
    chunk=chunk,
  )
  theirs = Theirs(cfg, levels).double()

  def weights(t):
    gates, level = np.split(t["in_proj.weight"], [-cfg.H * levels], 0)
    return {
      "in_proj": {"weight": gates.T},
      "levels": {"proj": {"weight": level.T}, "L": t["L"]},
      "conv": {
        "weight": t["conv1d.weight"][:, 0].T,
        "bias": t["conv1d.bias"],
      },
      "dt_bias": t["dt_bias"],
      "A_log": t["A_log"],
      "D": t["D"],
      "norm": t["norm"],
      "out_proj": {"weight": t["out_proj.weight"].T},
    }

  return Case(ours.Mixer, cfg, theirs, weights, length=length)


def start(dim):
  """HAttentionPreTrainedModel._init_weights, initializer_range 0.006."""
  cfg = ours.Config(dim=dim, depth=5, length=64, state=7, head=4, levels=7)
  E, H, N = cfg.E, cfg.H, cfg.state

  def draw():
    def normal(*shape):
      return starts.normal(*shape, std=0.006)

    low, high = math.log(1e-3), math.log(1e-1)
    dt = torch.exp(torch.rand(H) * (high - low) + low)
    out = torch.empty(dim, E)
    torch.nn.init.kaiming_uniform_(out, a=math.sqrt(5))
    return {
      "in_proj": {"weight": normal(dim, 2 * E + 2 * N + H)},
      "levels": {
        "proj": {"weight": normal(dim, H * 7)},
        "L": np.ones((H, 7)),
      },
      "conv": {"weight": normal(4, E + 2 * N), "bias": np.zeros(E + 2 * N)},
      "dt_bias": (dt + torch.log(-torch.expm1(-dt))).numpy(),
      "A_log": np.log(np.arange(1, H + 1)),
      "D": np.ones(H),
      "norm": np.ones(E),
      "out_proj": {"weight": out.T.numpy() / math.sqrt(2 * 5)},
    }

  return ours.Mixer, cfg, draw
