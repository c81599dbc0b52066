"""ttt = gradient descent on its inner loss, a token at a time."""

import numpy as np
import torch
from torch.nn import functional as F

from arch.mixers import ttt as ours
from parity import Case, starts

SOURCE = "arXiv 2407.04620, eq. 4 to 7; inner gradients by autograd (float64)"
CASES = [
  dict(length=37, batch=16),
  dict(length=11, batch=4, conv=0, gate=False),
]
START = [dict(dim=64)]
D = 12


class Theirs(torch.nn.Module):
  def __init__(self, cfg):
    super().__init__()
    self.cfg, H, K = cfg, cfg.H, cfg.head

    def linear(d_out=cfg.dim, bias=False):
      return torch.nn.Linear(cfg.dim, d_out, bias=bias)

    def conv():
      return torch.nn.Conv1d(
        cfg.dim, cfg.dim, cfg.conv, groups=cfg.dim, padding=cfg.conv - 1
      )

    self.q_proj, self.v_proj, self.o_proj = linear(), linear(), linear()
    if cfg.conv:
      self.q_conv, self.k_conv = conv(), conv()
    else:
      self.k_proj = linear()
    if cfg.gate:
      self.g_proj = linear()
    self.rate = linear(H, bias=True)
    self.share = torch.nn.Parameter(torch.empty(cfg.batch))
    self.W = torch.nn.Parameter(torch.empty(H, K, K))
    self.b = torch.nn.Parameter(torch.empty(H, K))
    self.scale = torch.nn.Parameter(torch.empty(H, K))
    self.bias = torch.nn.Parameter(torch.empty(H, K))
    self.norm = torch.nn.LayerNorm(cfg.dim, eps=1e-6)

  def inner(self, x, W, b):
    z = torch.einsum("bhk,bhkv->bhv", x, W) + b
    z = (z - z.mean(-1, True)) / (z.var(-1, False, keepdim=True) + 1e-6).sqrt()
    return self.scale * z + self.bias

  def forward(self, u):
    cfg = self.cfg
    B, T, _ = u.shape
    H, K, n = cfg.H, cfg.head, cfg.batch
    q, v = self.q_proj(u), self.v_proj(u)
    if cfg.conv:
      q, k = (f(q.mT)[..., :T].mT for f in (self.q_conv, self.k_conv))
    else:
      k = self.k_proj(u)
    place = torch.arange(T) % n
    q, k, v = (x.reshape(B, T, H, K) for x in (q, k, v))
    angle = place[:, None] * 10_000 ** (-torch.arange(0, K, 2) / K).double()
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]

    def rotary(x):  # pairs of neighbours
      x = x.reshape(B, T, H, -1, 2).contiguous()
      x = torch.view_as_complex(x) * turn
      return torch.view_as_real(x).flatten(-2)

    q, k = rotary(q), rotary(k)
    rate = cfg.rate * torch.sigmoid(self.rate(u)) / K
    share = (1 / torch.arange(1, n + 1) + self.share).clamp(min=0)
    now = self.W.expand(B, -1, -1, -1), self.b.expand(B, -1, -1)
    y = []
    for t in range(T):
      if place[t] == 0:
        W, b = now
        steps = [torch.zeros_like(x) for x in (W, b)]
      error = self.inner(k[:, t], W, b) - (v[:, t] - k[:, t])
      grads = torch.autograd.grad(
        error.square().sum() / 2, (W, b), create_graph=True
      )
      by = rate[:, t, :, None]
      steps = [steps[0] + by[..., None] * grads[0], steps[1] + by * grads[1]]
      now = [
        x - share[place[t]] * step
        for x, step in zip((W, b), steps, strict=True)
      ]
      y.append(q[:, t] + self.inner(q[:, t], *now))
    y = self.norm(torch.stack(y, 1).flatten(2))
    if cfg.gate:
      y = y * F.gelu(self.g_proj(u), approximate="tanh")
    return self.o_proj(y)


def case(length, batch, conv=3, gate=True):
  cfg = ours.Config(
    dim=D, depth=1, length=length, head=4, batch=batch, conv=conv, gate=gate
  )
  # neighbours are our rotary's halves: every channel of a head moves
  order = np.concatenate([np.arange(0, 4, 2), np.arange(1, 4, 2)])
  whole = (4 * np.arange(3)[:, None] + order[None]).ravel()

  def weights(t):
    def rows(*names):
      return np.concatenate([t[n][whole] for n in names], 0)

    w = {
      "rate": {"weight": t["rate.weight"].T, "bias": t["rate.bias"]},
      "share": t["share"],
      "W": t["W"][:, order][:, :, order],
      "b": t["b"][:, order],
      "scale": t["scale"][:, order],
      "bias": t["bias"][:, order],
      "norm": {"weight": rows("norm.weight"), "bias": rows("norm.bias")},
      "out_proj": {"weight": t["o_proj.weight"][:, whole].T},
    }
    if conv:
      w["in_proj"] = {"weight": rows("q_proj.weight", "v_proj.weight").T}
      w["conv"] = {
        "weight": rows("q_conv.weight", "k_conv.weight")[:, 0].T,
        "bias": rows("q_conv.bias", "k_conv.bias"),
      }
    else:
      qkv = rows("q_proj.weight", "k_proj.weight", "v_proj.weight")
      w["in_proj"] = {"weight": qkv.T}
    if gate:
      w["gate"] = {"weight": rows("g_proj.weight").T}
    return w

  return Case(ours.Mixer, cfg, Theirs(cfg).double(), weights, length=length)


def start(dim):
  """ttt_layer.py's initializer_range 0.02; flax's own start of nn.Conv."""
  H, K, n = 4, dim // 4, 16
  cfg = ours.Config(dim=dim, depth=5, length=64, head=K)

  def draw():
    normal = starts.normal

    taps = torch.empty(4, 2 * dim)
    torch.nn.init.trunc_normal_(taps, a=-2, b=2)
    taps *= 4**-0.5 / 0.87962566103423978  # its deviation when cut at 2
    return {
      "in_proj": {"weight": normal(dim, 2 * dim)},
      "conv": {"weight": taps.numpy(), "bias": np.zeros(2 * dim)},
      "rate": {"weight": normal(dim, H), "bias": np.zeros(H)},
      "share": np.zeros(n),
      "W": normal(H, K, K),
      "b": np.zeros((H, K)),
      "scale": np.ones((H, K)),
      "bias": np.zeros((H, K)),
      "norm": {"weight": np.ones(dim), "bias": np.zeros(dim)},
      "gate": {"weight": normal(dim, dim)},
      "out_proj": {"weight": normal(dim, dim)},
    }

  return ours.Mixer, cfg, draw
