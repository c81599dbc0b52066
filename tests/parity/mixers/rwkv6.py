"""rwkv6 = the layer's equations around fla's naive_recurrent_rwkv6."""

import numpy as np
import torch
from torch import nn

from arch.mixers import rwkv6 as ours
from parity import Case, Double, naive

SOURCE = (
  "fla naive_recurrent_rwkv6, in a layer from arXiv 2404.05892, section 4"
)
CASES = [
  dict(length=70, dim=12, head=6, mix_rank=3, decay_rank=4),
  dict(length=19, dim=12, head=4, mix_rank=4, decay_rank=3),
]
START = [dict(dim=64, head=32, layer=1)]
MAPS = {"r": "receptance", "k": "key", "v": "value", "g": "gate"}


class TimeMix(nn.Module):
  def __init__(self, cfg):
    super().__init__()
    self.cfg, D, R = cfg, cfg.dim, cfg.mix_rank

    def made(*shape):
      return nn.Parameter(torch.zeros(*shape))

    self.m_x = made(D)
    self.m = nn.ParameterDict({i: made(D) for i in "wkvrg"})
    self.down = nn.ParameterDict({i: made(D, R) for i in "wkvrg"})
    self.up = nn.ParameterDict({i: made(R, D) for i in "wkvrg"})
    self.decay, self.u = made(D), made(cfg.H, cfg.head)
    self.decay_down = made(D, cfg.decay_rank)
    self.decay_up = made(cfg.decay_rank, D)
    maps = {i: nn.Linear(D, D, bias=False) for i in (*MAPS, "out")}
    self.maps = nn.ModuleDict(maps)
    self.norm = nn.GroupNorm(cfg.H, D, eps=cfg.eps)

  def forward(self, x):
    d = nn.functional.pad(x, (0, 0, 1, -1)) - x
    mixed = {}
    for i in "wkvrg":
      low = torch.tanh((x + d * self.m_x) @ self.down[i])
      mixed[i] = x + d * (self.m[i] + low @ self.up[i])
    w = torch.tanh(mixed["w"] @ self.decay_down) @ self.decay_up
    w = -torch.exp(self.decay + w)
    r, k, v = (self.maps[i](mixed[i]) for i in "rkv")
    r, k, v, w = (
      t.unflatten(-1, (self.cfg.H, -1)).transpose(1, 2) for t in (r, k, v, w)
    )
    loop = naive("rwkv6/recurrent_naive").naive_recurrent_rwkv6
    with Double():
      o, _ = loop(r, k, v, w, self.u, scale=1.0)
    o = self.norm(o.transpose(1, 2).flatten(0, 1).flatten(1))
    g = nn.functional.silu(self.maps["g"](mixed["g"]))
    return self.maps["out"](o.reshape(x.shape) * g)


def weights(t):
  heads = t["u"].shape

  def stack(name, axis=0):
    return np.stack([t[f"{name}.{i}"] for i in "wkvrg"], axis)

  down = stack("down", 1)
  made = {n: {"weight": t[f"maps.{i}.weight"].T} for i, n in MAPS.items()}
  return made | {
    "mix_x": t["m_x"],
    "mix": stack("m"),
    "mix_down": down.reshape(len(down), -1),
    "mix_up": stack("up"),
    "decay": t["decay"],
    "decay_down": t["decay_down"],
    "decay_up": t["decay_up"],
    "u": t["u"],
    "norm": {
      "weight": t["norm.weight"].reshape(heads),
      "bias": t["norm.bias"].reshape(heads),
    },
    "out_proj": {"weight": t["maps.out.weight"].T},
  }


def case(length, **fields):
  cfg = ours.Config(depth=1, length=length, **fields)
  theirs = TimeMix(cfg).double()
  return Case(ours.Mixer, cfg, theirs, weights, length=length)


def start(layer, **fields):
  cfg = ours.Config(depth=3, length=1, **fields)

  def make(cfg, *, layer, rngs, at=layer):
    return ours.Mixer(cfg, layer=layer + at, rngs=rngs)

  def draw():
    theirs, D = TimeMix(cfg), cfg.dim
    high, low = layer / (cfg.depth - 1), 1 - layer / cfg.depth
    n = torch.arange(D)
    with torch.no_grad():
      for name, power, more in (
        *((i, low, 0) for i in "xwk"),
        ("v", low, 0.3 * high),
        *((i, 0.5 * low, 0) for i in "rg"),
      ):
        m = theirs.m_x if name == "x" else theirs.m[name]
        m.copy_(1 - ((n / D) ** power + more))
      for up in (*theirs.up.values(), theirs.decay_up):
        nn.init.uniform_(up, -0.01, 0.01)
      theirs.decay.copy_(-6 + 5 * (n / (D - 1)) ** (0.7 + 1.3 * high))
      u = high * (1 - n / (D - 1)) + ((n + 1) % 3 - 1) * 0.1
      theirs.u.copy_(u.view_as(theirs.u))
      for i, gain in dict(r=1, k=0.1, v=1, g=0.1).items():
        nn.init.orthogonal_(theirs.maps[i].weight, gain=gain)
      nn.init.zeros_(theirs.maps["out"].weight)
      theirs.norm.weight.fill_(((1 + layer) / cfg.depth) ** 0.7)
    named = theirs.named_parameters()
    return weights({name: p.detach().numpy() for name, p in named})

  return make, cfg, draw
