"""lru = the recurrence of the LRU paper, started as in its appendix A."""

import math

import numpy as np
import torch

from arch.mixers import lru as ours
from parity import Case

SOURCE = "a float64 loop of arXiv 2303.06349, section 3 and appendix A"
CASES = [dict(length=70, state=9), dict(length=19, state=4)]
START = [dict(r_min=0.0, r_max=1.0), dict(r_min=0.9, r_max=0.99)]
D = 6


class Layer(torch.nn.Module):
  def __init__(self, dim, state, r_min=0.0, r_max=1.0, max_phase=6.28):
    super().__init__()
    u, phase = torch.rand(2, state)
    modulus = torch.sqrt(u * (r_max**2 - r_min**2) + r_min**2)

    def parameter(x):
      return torch.nn.Parameter(x)

    self.nu_log = parameter(torch.log(-torch.log(modulus)))
    self.theta_log = parameter(torch.log(max_phase * phase))
    self.gamma_log = parameter(torch.log(torch.sqrt(1 - modulus**2)))
    for part in ("re", "im"):
      B = torch.randn(state, dim) / math.sqrt(2 * dim)
      setattr(self, f"B_{part}", parameter(B))
      C = torch.randn(dim, state) / math.sqrt(state)
      setattr(self, f"C_{part}", parameter(C))
    self.D = parameter(torch.randn(dim))
    self.value = torch.nn.Linear(dim, dim)
    self.gate = torch.nn.Linear(dim, dim)
    for out in (self.value, self.gate):  # flax's Dense
      std = dim**-0.5 / 0.87962566103423978
      torch.nn.init.trunc_normal_(out.weight, 0, std, -2 * std, 2 * std)
      torch.nn.init.zeros_(out.bias)

  def forward(self, u):
    rate = torch.complex(-torch.exp(self.nu_log), torch.exp(self.theta_log))
    B = torch.complex(self.B_re, self.B_im) * torch.exp(self.gamma_log)[:, None]
    C = torch.complex(self.C_re, self.C_im)
    x = torch.zeros(len(u), len(rate), dtype=rate.dtype)
    ys = []
    for u_t in u.unbind(1):
      x = torch.exp(rate) * x + u_t.to(B.dtype) @ B.T
      ys.append((x @ C.T).real + self.D * u_t)
    y = torch.nn.functional.gelu(torch.stack(ys, 1), approximate="tanh")
    return self.value(y) * torch.sigmoid(self.gate(y))


def weights(t):
  same = ("nu_log", "theta_log", "gamma_log", "D")
  return {name: t[name] for name in same} | {
    "B": {"weight": np.concatenate([t["B_re"], t["B_im"]]).T},
    "C": {"weight": np.concatenate([t["C_re"], -t["C_im"]], 1).T},
    "out_proj": {
      "weight": np.concatenate([t["value.weight"], t["gate.weight"]]).T,
      "bias": np.concatenate([t["value.bias"], t["gate.bias"]]),
    },
  }


def case(length, state):
  cfg = ours.Config(dim=D, depth=1, length=length, state=state)
  theirs = Layer(D, state).double()
  return Case(ours.Mixer, cfg, theirs, weights, length=length)


def start(r_min, r_max):
  cfg = ours.Config(
    dim=96, depth=1, length=8, state=128, r_min=r_min, r_max=r_max
  )

  def draw():
    t = Layer(cfg.dim, cfg.state, r_min, r_max).named_parameters()
    return weights({k: p.detach().numpy() for k, p in t})

  return ours.Mixer, cfg, draw
