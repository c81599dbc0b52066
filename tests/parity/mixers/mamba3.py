"""mamba3 = a float64 loop of the paper's recurrence over complex states."""

import math

import torch
from torch import nn

from arch.mixers import mamba3 as ours
from parity import Case

SOURCE = (
  "a float64 loop over complex states, of arXiv 2603.15569, sections 3, 4"
)
CASES = [
  dict(length=70, state=8, head=6, groups=2),
  dict(length=37, state=6, head=4, groups=1, rank=3, rotary=1.0),
  dict(length=19, state=8, head=6, groups=1, rank=2, heavy_tail=True),
]
START = [dict(state=16, head=32), dict(state=16, head=32, rank=4, groups=2)]
D = 12


class Mamba3(nn.Module):
  """The pairs of rows are numbers of C, which S turns, not q and k."""

  def __init__(self, cfg):
    super().__init__()
    self.cfg = cfg
    E, H, G, N, R = cfg.E, cfg.H, cfg.groups, cfg.state, cfg.R
    self.widths = E, E, R * G * N, R * G * N, H, H, H, cfg.angles
    self.inner = nn.Linear(cfg.dim, sum(self.widths), bias=False)
    low, high = math.log(1e-3), math.log(1e-1)
    dt = torch.exp(torch.rand(H) * (high - low) + low)
    self.dt_bias = nn.Parameter(torch.log(torch.expm1(dt)))
    self.norms = nn.ParameterDict({n: torch.ones(N) for n in "BC"})
    self.biases = nn.ParameterDict({n: torch.ones(R, H, N) for n in "BC"})
    if cfg.rank:
      gains = dict(x=1 / R, z=1.0, o=1 / R)
      gains = {n: torch.full((R, H, cfg.head), x) for n, x in gains.items()}
      self.mimo = nn.ParameterDict(gains)
    self.D = nn.Parameter(torch.ones(H))
    self.out = nn.Linear(E, cfg.dim, bias=False)

  def forward(self, u):
    cfg = self.cfg
    (B, T), H, G, R = u.shape[:2], cfg.H, cfg.groups, cfg.R
    z, x, b, c, dt, a, lam, angle = self.inner(u).split(self.widths, -1)
    x, z = (t.view(B, T, 1, H, -1) for t in (x, z))
    if cfg.rank:
      x, z = x * self.mimo["x"], z * self.mimo["z"]
    keys = {}
    for name, t in zip("BC", (b, c), strict=True):
      t = t.view(B, T, R, G, 1, -1)
      t = t * (t.square().mean(-1, keepdim=True) + cfg.eps).rsqrt()
      t = (t * self.norms[name]).expand(-1, -1, -1, -1, H // G, -1)
      t = t.reshape(B, T, R, H, -1) + self.biases[name]
      keys[name] = torch.complex(*t.chunk(2, -1))  # B T R H N/2
    dt = nn.functional.softplus(dt + self.dt_bias)
    rate = nn.functional.softplus(a)
    if cfg.heavy_tail:
      rate = torch.where(a >= 0, 1 + a, 1 / (1 - a))
    alpha = torch.exp(-rate.clamp(min=1e-4) * dt)
    lam = torch.sigmoid(lam)
    angle = math.pi * torch.tanh(angle)[:, :, None] * dt[..., None]
    spare = cfg.state // 2 - cfg.angles
    angle = nn.functional.pad(angle, (0, spare))
    turn = torch.polar(alpha[..., None].expand_as(angle), -angle)

    S = torch.zeros(B, H, cfg.state // 2, cfg.head, dtype=turn.dtype)
    old, ys = torch.zeros_like(S), []
    for t in range(T):
      new = torch.einsum("brhn,brhp->bhnp", keys["B"][:, t], x[:, t] + 0j)
      step = dt[:, t, :, None, None]
      share = lam[:, t, :, None, None]
      S = turn[:, t, ..., None] * (S + (1 - share) * step * old)
      S = S + share * step * new
      read = torch.einsum("brhn,bhnp->brhp", keys["C"][:, t].conj(), S)
      y = read.real + self.D[:, None] * x[:, t]
      y = y * nn.functional.silu(z[:, t])
      ys.append((y * self.mimo["o"] if cfg.rank else y).sum(1))
      old = new
    return self.out(torch.stack(ys, 1).flatten(2))


def weights(t):
  mimo = {f"mimo_{n}": t[f"mimo.{n}"] for n in "xzo" if f"mimo.{n}" in t}
  norms = {f"{n}_norm": {"weight": t[f"norms.{n}"]} for n in "BC"}
  biases = {f"{n}_bias": t[f"biases.{n}"] for n in "BC"}
  return {
    **mimo,
    **norms,
    **biases,
    "in_proj": {"weight": t["inner.weight"].T},
    "dt_bias": t["dt_bias"],
    "D": t["D"],
    "out_proj": {"weight": t["out.weight"].T},
  }


def case(length, **fields):
  cfg = ours.Config(dim=D, depth=1, length=length, **fields)
  theirs = Mamba3(cfg).double()
  return Case(ours.Mixer, cfg, theirs, weights, length=length)


def start(**fields):
  cfg = ours.Config(dim=96, depth=3, length=1, **fields)

  def draw():
    theirs = Mamba3(cfg)
    with torch.no_grad():
      theirs.out.weight /= math.sqrt(2 * cfg.depth)
    named = theirs.named_parameters()
    return weights({name: p.detach().numpy() for name, p in named})

  return ours.Mixer, cfg, draw
