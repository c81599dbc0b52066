"""log_linear = the recurrent form of its paper, a state a level."""

import math

import numpy as np
import torch
from torch.nn import functional as F

from arch.mixers import log_linear as ours
from parity import Case, starts

SOURCE = "arXiv 2506.04761, sections 3.1 and 3.4 (torch loop, float64)"
CASES = [dict(length=70), dict(length=19, chunk=4)]
START = [dict(dim=64)]
D = 12


class Theirs(torch.nn.Module):
  def __init__(self, cfg, levels):
    super().__init__()
    H, K = cfg.heads, cfg.head
    V = cfg.expand * K

    def linear(d_out):
      return torch.nn.Linear(cfg.dim, d_out, bias=False)

    def conv(width):
      return torch.nn.Conv1d(
        width, width, cfg.conv, groups=width, padding=cfg.conv - 1, bias=False
      )

    self.levels, self.H, self.K, self.V = levels, H, K, V
    self.q_proj, self.k_proj = linear(H * K), linear(H * K)
    self.v_proj, self.g_proj = linear(H * V), linear(H * V)
    self.b_proj, self.a_proj = linear(H), linear(H)
    self.l_proj = linear(H * levels)
    self.q_conv, self.k_conv, self.v_conv = map(conv, (H * K, H * K, H * V))
    self.dt_bias = torch.nn.Parameter(torch.empty(H))
    self.A_log = torch.nn.Parameter(torch.empty(H))
    self.L = torch.nn.Parameter(torch.empty(H, levels))
    self.norm = torch.nn.Parameter(torch.empty(V))
    self.o_proj = torch.nn.Linear(H * V, cfg.dim, bias=False)

  def forward(self, u):
    B, T, _ = u.shape

    def part(name, width):
      x = getattr(self, f"{name}_proj")(u).mT
      x = F.silu(getattr(self, f"{name}_conv")(x)[..., :T].mT)
      return x.reshape(B, T, self.H, width)

    q, k, v = part("q", self.K), part("k", self.K), part("v", self.V)
    q, k = (x * (x.square().sum(-1, True) + 1e-6).rsqrt() for x in (q, k))
    beta = torch.sigmoid(self.b_proj(u))
    alpha = torch.exp(
      -self.A_log.exp() * F.softplus(self.a_proj(u) + self.dt_bias)
    )
    scale = self.l_proj(u).reshape(B, T, self.H, self.levels)
    scale = F.softplus(self.L * scale)
    eye = torch.eye(self.K, dtype=u.dtype)
    zero = torch.zeros(B, self.H, self.K, self.V, dtype=u.dtype)
    S, tokens, o = [zero] * self.levels, [0] * self.levels, []
    for t in range(T):
      n = 0
      while tokens[n] == 2**n:  # level n is full: it becomes a part of n + 1
        S[n + 1], tokens[n + 1] = S[n + 1] + S[n], tokens[n + 1] + tokens[n]
        S[n], tokens[n] = zero, 0
        n += 1
      kk = torch.einsum("bhk,bhj->bhkj", k[:, t], k[:, t])
      kv = torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
      b, a = beta[:, t, :, None, None], alpha[:, t, :, None, None]
      S = [a * (eye - b * kk) @ part for part in S]
      S[0], tokens[0] = b * kv, 1
      both = torch.einsum("bhl,lbhkv->bhkv", scale[:, t], torch.stack(S))
      o.append(torch.einsum("bhk,bhkv->bhv", q[:, t], both))
    o = torch.stack(o, 1)
    o = o * (o.square().mean(-1, True) + 1e-5).rsqrt() * self.norm
    o = o.reshape(B, T, -1) * F.silu(self.g_proj(u))
    return self.o_proj(o)


def case(length, chunk=64):
  levels = math.ceil(math.log2(length)) + 1
  cfg = ours.Config(
    dim=D, depth=1, length=length, heads=3, head=4, conv=3, chunk=chunk
  )

  def weights(t):
    def both(*names):
      return np.concatenate([t[f"{n}.weight"] for n in names], 0)

    return {
      "in_proj": {"weight": both("q_proj", "k_proj", "v_proj", "g_proj").T},
      "gates": {"weight": both("b_proj", "a_proj").T},
      "levels": {"proj": {"weight": t["l_proj.weight"].T}, "L": t["L"]},
      "conv": {"weight": both("q_conv", "k_conv", "v_conv")[:, 0].T},
      "dt_bias": t["dt_bias"],
      "A_log": t["A_log"],
      "norm": {"weight": t["norm"]},
      "out_proj": {"weight": t["o_proj.weight"].T},
    }

  theirs = Theirs(cfg, levels).double()
  return Case(ours.Mixer, cfg, theirs, weights, length=length)


def start(dim):
  """HGatedDeltaNetPreTrainedModel._init_weights, initializer_range 0.006."""
  H, K, V, levels = 6, 8, 16, 7
  cfg = ours.Config(dim=dim, depth=5, length=64, heads=H, head=K)

  def draw():
    def normal(*shape):
      return starts.normal(*shape, std=0.006)

    low, high = math.log(1e-3), math.log(1e-1)
    dt = torch.exp(torch.rand(H) * (high - low) + low)
    out = torch.empty(dim, H * V)
    torch.nn.init.kaiming_uniform_(out, a=math.sqrt(5))
    return {
      "in_proj": {"weight": normal(dim, 2 * H * (K + V))},
      "gates": {"weight": normal(dim, 2 * H)},
      "levels": {
        "proj": {"weight": normal(dim, H * levels)},
        "L": np.ones((H, levels)),
      },
      "conv": {"weight": normal(4, H * (2 * K + V))},
      "dt_bias": (dt + torch.log(-torch.expm1(-dt))).numpy(),
      "A_log": torch.empty(H).uniform_(0, 16).log().numpy(),
      "norm": {"weight": np.ones(V)},
      "out_proj": {"weight": out.T.numpy() / math.sqrt(2 * 5)},
    }

  return ours.Mixer, cfg, draw
