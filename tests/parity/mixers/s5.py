"""s5 = the recurrence of the S5 paper, started as in lindermanlab/S5."""

import math

import numpy as np
import torch

from arch.mixers import s5 as ours
from parity import Case

SOURCE = "a float64 loop of arXiv 2208.04933, section 3"
CASES = [dict(length=37, state=8, blocks=2), dict(length=19, state=6, blocks=1)]
START = [dict(state=64, blocks=4), dict(state=32, blocks=1)]
D = 6


def hippo(N):
  """Lambda and V of the normal part of HiPPO-LegS, the first half of each."""
  root = np.sqrt(1 + 2 * np.arange(N))
  A = np.diag(np.arange(N)) - np.tril(root[:, None] * root)
  S = A + root[:, None] * root / 2
  imag, V = np.linalg.eigh(S * -1j)
  return (np.diagonal(S).mean() + 1j * imag)[: N // 2], V[:, : N // 2]


def lecun(*shape):
  """flax's lecun_normal for a matrix whose rows are counted."""
  std = shape[0] ** -0.5 / 0.87962566103423978
  x = torch.empty(shape)
  return torch.nn.init.trunc_normal_(x, 0, std, -2 * std, 2 * std)


class Layer(torch.nn.Module):
  def __init__(self, dim, state, blocks):
    super().__init__()
    Lambda, V = hippo(state // blocks)
    Lambda = torch.tensor(np.tile(Lambda, blocks))
    V = torch.block_diag(*[torch.tensor(V)] * blocks).to(torch.cfloat)
    B = V.mH @ lecun(state, dim).to(V.dtype)
    C = [torch.complex(*lecun(state, 2).T) for _ in range(dim)]
    C = torch.stack(C) @ V
    low, high = math.log(1e-3), math.log(1e-1)

    def parameter(x):
      return torch.nn.Parameter(x.float())

    self.Lambda_re, self.Lambda_im = map(parameter, (Lambda.real, Lambda.imag))
    self.B_re, self.B_im = parameter(B.real), parameter(B.imag)
    self.C_re, self.C_im = parameter(C.real), parameter(C.imag)
    self.D = parameter(torch.randn(dim))
    self.log_step = parameter(torch.rand(state // 2) * (high - low) + low)
    self.gate = torch.nn.Linear(dim, dim)
    with torch.no_grad():
      self.gate.weight.copy_(lecun(dim, dim).T)
      self.gate.bias.zero_()

  def forward(self, u):
    real = torch.clamp(self.Lambda_re, max=-1e-4)
    Lambda = torch.complex(real, self.Lambda_im)
    bar = torch.exp(Lambda * torch.exp(self.log_step))
    B = ((bar - 1) / Lambda)[:, None] * torch.complex(self.B_re, self.B_im)
    C = torch.complex(self.C_re, self.C_im)
    x = torch.zeros(len(u), len(bar), dtype=bar.dtype)
    ys = []
    for u_t in u.unbind(1):
      x = bar * x + u_t.to(B.dtype) @ B.T
      ys.append(2 * (x @ C.T).real + self.D * u_t)
    y = torch.nn.functional.gelu(torch.stack(ys, 1), approximate="tanh")
    return y * torch.sigmoid(self.gate(y))


def weights(t):
  return {
    "A_re": t["Lambda_re"],
    "A_im": t["Lambda_im"],
    "log_dt": t["log_step"],
    "B": {"weight": np.concatenate([t["B_re"], t["B_im"]]).T},
    "C": {"weight": np.concatenate([t["C_re"], -t["C_im"]], 1).T},
    "D": t["D"],
    "out_proj": {"weight": t["gate.weight"].T, "bias": t["gate.bias"]},
  }


def case(length, state, blocks):
  cfg = ours.Config(dim=D, depth=1, length=length, state=state, blocks=blocks)
  theirs = Layer(D, state, blocks).double()
  return Case(ours.Mixer, cfg, theirs, weights, length=length)


def start(state, blocks):
  cfg = ours.Config(dim=96, depth=1, length=8, state=state, blocks=blocks)

  def draw():
    t = Layer(cfg.dim, state, blocks).named_parameters()
    return weights({k: p.detach().numpy() for k, p in t})

  return ours.Mixer, cfg, draw
