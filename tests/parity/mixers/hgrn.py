"""hgrn = fla's layer around its naive_recurrent_hgrn, three layers deep.

The bounds are one parameter of a model, so a stack of layers without anything
between them is held against one.
"""

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from arch.mixers import hgrn as ours
from parity import Case, naive

SOURCE = (
  "fla-core naive_recurrent_hgrn in float32, in layers of arXiv 2311.04823"
)
CASES = [dict(length=70, expand=1), dict(length=19, expand=2)]
START = [dict(expand=1)]
D, DEPTH = 6, 3
PARTS = {"i": "input", "f": "forget", "g": "gate"}


class Layer(torch.nn.Module):
  def __init__(self, dim, width):
    super().__init__()
    for part in PARTS.values():
      setattr(self, part, torch.nn.Linear(dim, width, bias=False))
    self.norm = torch.nn.RMSNorm(width, eps=1e-5)
    self.output = torch.nn.Linear(width, dim, bias=False)

  def forward(self, x, bound):
    f = bound + (1 - bound) * torch.sigmoid(self.forget(x))
    write = (1 - f) * torch.nn.functional.silu(self.input(x))
    h = naive("hgrn/naive").naive_recurrent_hgrn(write, torch.log(f))[0]
    gate = torch.nn.functional.silu(self.gate(x))
    return self.output(self.norm(h) * gate)


class Layers(torch.nn.Module):
  def __init__(self, dim, width, depth):
    super().__init__()
    self.bounds = torch.nn.Parameter(torch.zeros(depth, width))
    for i in range(depth):
      setattr(self, f"layer_{i}", Layer(dim, width))
    for module in self.modules():
      if isinstance(module, torch.nn.Linear):
        torch.nn.init.normal_(module.weight, std=0.02)

  def forward(self, x):
    share = self.bounds.softmax(0)
    bounds = share.cumsum(0) - share[0]
    for i, bound in enumerate(bounds):
      x = x + getattr(self, f"layer_{i}")(x, bound)
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
    own = {p: t[f"layer_{i}.{name}.weight"] for p, name in PARTS.items()}
    made[f"layer_{i}"] = {
      "in_proj": {"weight": np.concatenate(list(own.values())).T},
      "norm": {"weight": t[f"layer_{i}.norm.weight"]},
      "out_proj": {"weight": t[f"layer_{i}.output.weight"].T},
    }
  return made


def case(length, expand):
  cfg = ours.Config(dim=D, depth=DEPTH, length=length, expand=expand)
  theirs = Layers(D, cfg.E, DEPTH)
  return Case(Ours, cfg, theirs, weights, length=length)


def start(expand):
  cfg = ours.Config(dim=64, depth=2, length=8, expand=expand)

  def draw():
    t = Layers(cfg.dim, cfg.E, cfg.depth).named_parameters()
    return weights({k: p.detach().numpy() for k, p in t})

  return Ours, cfg, draw
