"""hgrn2 = fla's layer around its naive_recurrent_gla, several layers deep.

The bounds are one parameter of a model, so a stack of layers without anything
between them is held against one.
"""

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from arch.mixers import hgrn2 as ours
from parity import Case, Double, naive

SOURCE = "fla naive_recurrent_gla, in layers of arXiv 2404.07904, section 3"
CASES = [
  dict(length=70, dim=8, head=4, depth=2),
  dict(length=19, dim=6, head=2, depth=3),
]
START = [dict(dim=64, head=32, depth=2)]


class Layer(torch.nn.Module):
  def __init__(self, cfg):
    super().__init__()
    self.cfg, D = cfg, cfg.dim
    maps = {
      n: torch.nn.Linear(D, D, bias=False) for n in ("q", "f", "v", "out")
    }
    self.maps = torch.nn.ModuleDict(maps)
    self.norm = torch.nn.Parameter(torch.ones(D))

  def forward(self, x, bound):
    q, f, v = (self.maps[n](x) for n in "qfv")
    f = bound + (1 - bound) * torch.sigmoid(f)
    parts = torch.nn.functional.silu(q), 1 - f, v, torch.log(f)
    parts = (t.unflatten(-1, (self.cfg.H, -1)) for t in parts)
    with Double():
      o, _ = naive("gla/naive").naive_recurrent_gla(*parts)
    o = o.flatten(2)
    power = o.square().mean(-1, keepdim=True)
    return self.maps["out"](o * (power + self.cfg.eps).rsqrt() * self.norm)


class Layers(torch.nn.Module):
  def __init__(self, cfg):
    super().__init__()
    self.bounds = torch.nn.Parameter(torch.zeros(cfg.depth, cfg.dim))
    self.layers = torch.nn.ModuleList(Layer(cfg) for _ in range(cfg.depth))
    for module in self.modules():
      if isinstance(module, torch.nn.Linear):
        torch.nn.init.normal_(module.weight, std=0.02)

  def forward(self, x):
    share = self.bounds.softmax(0)
    bounds = share.cumsum(0) - share[0]
    for layer, bound in zip(self.layers, bounds, strict=True):
      x = x + layer(x, bound)
    return x


class Ours(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.shared = ours.Shared(cfg, rngs=rngs)
    for i in range(cfg.depth):
      mixer = ours.Mixer(cfg, layer=jnp.int32(i), rngs=rngs)
      setattr(self, f"layer_{i}", mixer)
    self.depth = cfg.depth

  def __call__(self, x, reset, state):
    for i in range(self.depth):
      bound = self.shared(jnp.int32(i))
      x = x + getattr(self, f"layer_{i}")(x, reset, None, bound)[0]
    return x, None


def weights(t):
  made = {"shared": {"bounds": t["bounds"]}}
  for i in range(len(t["bounds"])):
    maps = {n: t[f"layers.{i}.maps.{n}.weight"] for n in ("q", "f", "v", "out")}
    out = maps.pop("out").T
    made[f"layer_{i}"] = {
      "in_proj": {"weight": np.concatenate(list(maps.values()), 0).T},
      "norm": {"weight": t[f"layers.{i}.norm"]},
      "out_proj": {"weight": out},
    }
  return made


def case(length, **fields):
  cfg = ours.Config(length=length, **fields)
  return Case(Ours, cfg, Layers(cfg).double(), weights, length=length)


def start(**fields):
  cfg = ours.Config(length=8, **fields)

  def draw():
    named = Layers(cfg).named_parameters()
    return weights({name: p.detach().numpy() for name, p in named})

  return Ours, cfg, draw
