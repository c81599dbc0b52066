"""hyena = the definition of the Hyena paper as a sum over lags."""

import math

import torch

from arch.mixers import hyena as ours
from parity import Case

SOURCE = (
  "a float64 sum over lags, arXiv 2302.10866, definition 3.1, section 3.3"
)
CASES = [
  dict(length=70, conv=3, features=5),
  dict(length=19, conv=4, features=7),
  dict(length=37, conv=3, features=3, total=13),
]
START = [dict(depth=1), dict(depth=8)]
D, W = 6, 5


class Layer(torch.nn.Module):
  """Parameters and their start as in safari's pile/hyena.yaml."""

  def __init__(self, dim, length, conv, width, features, depth=1):
    super().__init__()
    self.length, self.taps = length, conv
    self.into = torch.nn.Linear(dim, 3 * dim)
    self.short = torch.nn.Conv1d(
      3 * dim, 3 * dim, conv, groups=3 * dim, padding=conv - 1
    )
    self.out = torch.nn.Linear(dim, dim)
    sizes = [features, width, width, width]
    for i in range(3):
      setattr(self, f"mlp_{i}", torch.nn.Linear(*sizes[i : i + 2]))
    self.mlp_3 = torch.nn.Linear(width, dim, bias=False)
    bands = (features - 1) // 2
    f = torch.linspace(1e-4, bands - 1, bands)
    t = torch.linspace(0, 1, length)[:, None]
    w = 2 * math.pi * torch.arange(length)[:, None] / length
    wave = torch.exp(-1j * f * w)
    z = torch.cat([t, wave.real, wave.imag], 1)
    self.z = torch.nn.Parameter(z)
    self.freq = torch.nn.Parameter(14 * torch.ones(width))
    self.bias = torch.nn.Parameter(torch.randn(dim))
    low, high = math.log(1e-2) / 1.5, math.log(1e-2) / 0.3
    decay = torch.exp(-t * torch.linspace(low, high, dim).abs())
    self.register_buffer("decay", decay)
    for name, module in self.named_modules():
      if isinstance(module, torch.nn.Linear):
        scale = (2 * depth) ** -0.5 if name == "out" else 1
        torch.nn.init.normal_(module.weight, std=0.02 * scale)
        if module.bias is not None:
          torch.nn.init.zeros_(module.bias)

  def kernel(self):
    h = self.z
    for i in range(3):
      h = torch.sin(self.freq * getattr(self, f"mlp_{i}")(h))
    return self.mlp_3(h) * self.decay

  def forward(self, u):
    T = u.shape[1]
    x0, x1, v = self.short(self.into(u).mT)[..., :T].mT.chunk(3, -1)
    v, k = x1 * v, self.kernel()
    ys = []
    for t in range(T):
      first = max(0, t + 1 - self.length)
      lags = t - torch.arange(first, t + 1)
      ys.append((k[lags] * v[:, first : t + 1]).sum(1) + self.bias * v[:, t])
    return self.out(x0 * torch.stack(ys, 1))


def weights(t):
  def linear(name):
    made = {"weight": t[f"{name}.weight"].T}
    if f"{name}.bias" in t:
      made["bias"] = t[f"{name}.bias"]
    return made

  names = ("first", "second", "third", "last")
  mlp = {name: linear(f"mlp_{i}") for i, name in enumerate(names)}
  return {
    "in_proj": linear("into"),
    "conv": {"weight": t["short.weight"][:, 0].T, "bias": t["short.bias"]},
    "filter": mlp | {"z": t["z"], "w": t["freq"]},
    "skip": t["bias"],
    "out_proj": linear("out"),
  }


def case(length, conv, features, total=None):
  total = total or length
  cfg = ours.Config(
    dim=D, depth=1, length=total, conv=conv, filter=W, features=features
  )
  theirs = Layer(D, total, conv, W, features).double()
  return Case(ours.Mixer, cfg, theirs, weights, length=length)


def start(depth):
  cfg = ours.Config(dim=96, depth=depth, length=50, filter=48, features=9)

  def draw():
    own = Layer(cfg.dim, cfg.length, cfg.conv, cfg.filter, cfg.features, depth)
    return weights({k: p.detach().numpy() for k, p in own.named_parameters()})

  return ours.Mixer, cfg, draw
