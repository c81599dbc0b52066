"""s4d = the recurrence of the S4D paper, and what state-spaces/s4 starts it at.

The kernel of its Listing 1 and of models/s4/s4d.py is the impulse response of
this loop; the layer around it is that file's.
"""

import math

import torch

from arch.mixers import s4d as ours
from parity import Case

SOURCE = "a float64 loop of arXiv 2206.11893, sections 3 and 4"
CASES = [dict(length=70, state=6), dict(length=19, state=10)]
START = [dict(start="lin"), dict(start="inv"), dict(start="legs")]
D = 7


def linear(N):
  return math.pi * torch.arange(N // 2)


def inverse(N):
  return N / math.pi * (N / (2 * torch.arange(N // 2) + 1) - 1)


def legs(N):
  """The positive imaginary parts of the eigenvalues of A + P P^T, A HiPPO's."""
  root = torch.sqrt(2 * torch.arange(N, dtype=torch.float64) + 1)
  A = -torch.tril(root[:, None] * root) + torch.diag(torch.arange(N))
  values = torch.linalg.eigvals(A + root[:, None] * root / 2).imag
  return values[values > 0].sort().values


class Layer(torch.nn.Module):
  def __init__(self, dim, state, imaginary=linear):
    super().__init__()
    shape = dim, state // 2
    low, high = math.log(1e-3), math.log(1e-1)
    C = torch.view_as_real(torch.randn(shape, dtype=torch.cfloat))
    A_imag = imaginary(state).float().expand(shape).clone()
    parameter = torch.nn.Parameter
    self.log_dt = parameter(torch.rand(dim) * (high - low) + low)
    self.log_A_real = parameter(torch.log(torch.full(shape, 0.5)))
    self.A_imag = parameter(A_imag)
    self.C = parameter(C)
    self.D = parameter(torch.randn(dim))
    self.output = torch.nn.Conv1d(dim, 2 * dim, 1)

  def forward(self, u):
    A = torch.complex(-torch.exp(self.log_A_real), self.A_imag)
    discrete = torch.exp(A * torch.exp(self.log_dt)[:, None])
    B = (discrete - 1) / A
    C = torch.view_as_complex(self.C)
    h = torch.zeros(len(u), *A.shape, dtype=A.dtype)
    ys = []
    for u_t in u.unbind(1):
      h = discrete * h + B * u_t[..., None]
      ys.append(2 * (C * h).sum(-1).real + self.D * u_t)
    y = torch.nn.functional.gelu(torch.stack(ys, -1))
    return torch.nn.functional.glu(self.output(y), 1).mT


def weights(t):
  same = {name: t[name] for name in ("log_dt", "log_A_real", "A_imag", "D")}
  return same | {
    "C": t["C"].transpose(2, 0, 1),
    "out_proj": {
      "weight": t["output.weight"][..., 0].T,
      "bias": t["output.bias"],
    },
  }


def case(length, state):
  cfg = ours.Config(dim=D, depth=1, length=length, state=state)
  theirs = Layer(D, state).double()
  return Case(ours.Mixer, cfg, theirs, weights, length=length)


def start(start):
  cfg = ours.Config(dim=64, depth=1, length=8, state=16, start=start)
  imaginary = {"lin": linear, "inv": inverse, "legs": legs}[start]

  def draw():
    layer = Layer(cfg.dim, cfg.state, imaginary)
    return weights({k: p.detach().numpy() for k, p in layer.named_parameters()})

  return ours.Mixer, cfg, draw
