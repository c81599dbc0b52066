"""minlstm = the recurrent form of that paper, with g of its appendix B."""

import torch

from arch.mixers import minlstm as ours
from parity import Case
from parity.mixers import mingru

SOURCE = "a float64 loop of arXiv 2410.01201, section 3.2 and appendix B"
CASES = [dict(length=70, expand=1.5), dict(length=19, expand=1)]
START = [dict(expand=1.5)]
D = 6


class Layer(mingru.Layer):
  gates = ("f", "i")

  def keep_and_write(self, x):
    f, i = torch.sigmoid(self.f(x)), torch.sigmoid(self.i(x))
    return f / (f + i), i / (f + i)


def case(length, expand):
  cfg = ours.Config(dim=D, depth=1, length=length, expand=expand)
  theirs = Layer(D, expand).double()
  return Case(ours.Mixer, cfg, theirs, mingru.weights, length=length)


def start(expand):
  cfg = ours.Config(dim=64, depth=1, length=8, expand=expand)

  def draw():
    t = Layer(cfg.dim, expand).named_parameters()
    return mingru.weights({k: p.detach().numpy() for k, p in t})

  return ours.Mixer, cfg, draw
