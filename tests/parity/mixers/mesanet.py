"""mesanet = naive_mesa_net_exact of fla in the layer around it."""

import math

import numpy as np
import torch
from torch.nn import functional as F

from arch.mixers import mesanet as ours
from parity import Case, naive, starts

SOURCE = "fla-core naive_mesa_net_exact, in the layer's projections"
CASES = [dict(length=70, heads=2), dict(length=19, heads=3, floor=0.1)]
START = [dict(dim=64)]
D = 12


class Theirs(torch.nn.Module):
  def __init__(self, cfg):
    super().__init__()
    self.cfg, inner = cfg, cfg.H * cfg.head

    def conv():
      return torch.nn.Conv1d(
        inner, inner, cfg.conv, groups=inner, padding=cfg.conv - 1, bias=False
      )

    self.q_proj = torch.nn.Linear(cfg.dim, inner, bias=False)
    self.k_proj = torch.nn.Linear(cfg.dim, inner, bias=False)
    self.v_proj = torch.nn.Linear(cfg.dim, inner, bias=False)
    self.a_proj = torch.nn.Linear(cfg.dim, cfg.H)
    self.b_proj = torch.nn.Linear(cfg.dim, cfg.H)
    self.q_conv, self.k_conv = conv(), conv()
    self.lambda_params = torch.nn.Parameter(torch.empty(inner))
    self.norm = torch.nn.Parameter(torch.empty(cfg.head))
    self.o_proj = torch.nn.Linear(inner, cfg.dim, bias=False)

  def forward(self, u):
    cfg = self.cfg
    B, T, _ = u.shape
    shape = B, T, cfg.H, cfg.head

    def key(proj, conv):
      x = F.silu(conv(proj(u).mT)[..., :T].mT).reshape(shape)
      return x * (x.square().sum(-1, True) + 1e-6).rsqrt()

    o, _, _ = naive("mesa_net/naive").naive_mesa_net_exact(
      key(self.q_proj, self.q_conv),
      key(self.k_proj, self.k_conv),
      self.v_proj(u).reshape(shape),
      F.logsigmoid(self.a_proj(u)),
      (F.softplus(self.lambda_params) + cfg.floor).reshape(shape[2:]),
      torch.sigmoid(self.b_proj(u)),
    )
    o = o * (o.square().mean(-1, True) + 1e-5).rsqrt() * self.norm
    return self.o_proj(o.reshape(B, T, -1))


def case(length, heads, floor=0.25):
  cfg = ours.Config(
    dim=D, depth=1, length=length, heads=heads, head=4, conv=3, floor=floor
  )

  def weights(t):
    def both(*names):
      return np.concatenate([t[n] for n in names], 0)

    return {
      "in_proj": {
        "weight": both("q_proj.weight", "k_proj.weight", "v_proj.weight").T
      },
      "gates": {
        "weight": both("a_proj.weight", "b_proj.weight").T,
        "bias": both("a_proj.bias", "b_proj.bias"),
      },
      "conv": {"weight": both("q_conv.weight", "k_conv.weight")[:, 0].T},
      "ridge": t["lambda_params"].reshape(heads, -1),
      "norm": {"weight": t["norm"]},
      "out_proj": {"weight": t["o_proj.weight"].T},
    }

  return Case(ours.Mixer, cfg, Theirs(cfg), weights, length=length)


def start(dim):
  """MesaNetPreTrainedModel._init_weights, initializer_range 0.02."""
  H, K = 4, 16
  cfg = ours.Config(dim=dim, depth=5, length=64, heads=H, head=K)

  def draw():
    normal = starts.normal

    return {
      "in_proj": {"weight": normal(dim, 3 * H * K)},
      "gates": {"weight": normal(dim, 2 * H), "bias": np.zeros(2 * H)},
      "conv": {"weight": normal(4, 2 * H * K)},
      "ridge": np.full((H, K), math.log(math.exp(0.75) - 1)),
      "norm": {"weight": np.ones(K)},
      "out_proj": {"weight": normal(H * K, dim)},
    }

  return ours.Mixer, cfg, draw
