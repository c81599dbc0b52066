"""mingru = the recurrent form of the minGRU paper, with g of its appendix B."""

import torch

from arch.mixers import mingru as ours
from parity import Case

SOURCE = "a float64 loop of arXiv 2410.01201, section 3.1 and appendix B"
CASES = [dict(length=70, expand=1.5), dict(length=19, expand=1)]
START = [dict(expand=1.5)]
D = 6


def g(x):
  return torch.where(x >= 0, x + 0.5, torch.sigmoid(x))


class Layer(torch.nn.Module):
  """Its maps are torch.nn.Linear's, without biases as in minGRU-pytorch."""

  gates = ("z",)

  def __init__(self, dim, expand):
    super().__init__()
    E = int(expand * dim)
    for name in (*self.gates, "h"):
      setattr(self, name, torch.nn.Linear(dim, E, bias=False))
    self.out = torch.nn.Linear(E, dim, bias=False) if expand != 1 else None

  def keep_and_write(self, x):
    z = torch.sigmoid(self.z(x))
    return 1 - z, z

  def forward(self, x):
    h, hs = 0, []
    for x_t in x.unbind(1):
      keep, write = self.keep_and_write(x_t)
      h = keep * h + write * g(self.h(x_t))
      hs.append(h)
    y = torch.stack(hs, 1)
    return y if self.out is None else self.out(y)


def weights(t):
  names = {"h": "v_proj", "out": "out_proj"}
  parts = (key.split(".")[0] for key in t)
  return {
    names.get(n, f"{n}_proj"): {"weight": t[f"{n}.weight"].T} for n in parts
  }


def case(length, expand):
  cfg = ours.Config(dim=D, depth=1, length=length, expand=expand)
  theirs = Layer(D, expand).double()
  return Case(ours.Mixer, cfg, theirs, weights, length=length)


def start(expand):
  cfg = ours.Config(dim=64, depth=1, length=8, expand=expand)

  def draw():
    layer = Layer(cfg.dim, expand)
    return weights({k: p.detach().numpy() for k, p in layer.named_parameters()})

  return ours.Mixer, cfg, draw
