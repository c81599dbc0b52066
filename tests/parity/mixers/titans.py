"""titans = gradient descent with momentum on its loss, a token at a time."""

import numpy as np
import torch
from torch.nn import functional as F

from arch.mixers import titans as ours
from parity import Case

SOURCE = "arXiv 2501.00663, eq. 8 to 16; inner gradients by autograd (float64)"
CASES = [
  dict(length=37, batch=16),
  dict(length=11, batch=4, layers=1),
]
START = [dict(dim=64)]
D = 12


class Theirs(torch.nn.Module):
  def __init__(self, cfg):
    super().__init__()
    self.cfg, H, dim = cfg, cfg.H, cfg.dim
    self.qkv_proj = torch.nn.Linear(dim, 3 * dim, bias=False)
    self.conv1d = torch.nn.Conv1d(
      3 * dim,
      3 * dim,
      cfg.conv,
      groups=3 * dim,
      padding=cfg.conv - 1,
      bias=False,
    )
    self.z_proj = torch.nn.Linear(dim, dim, bias=False)
    self.rate, self.momentum, self.decay = (
      torch.nn.Linear(dim, H) for _ in range(3)
    )
    self.M = torch.nn.ParameterList(
      torch.empty(H, *shape) for shape in cfg.shapes
    )
    self.norm = torch.nn.Parameter(torch.empty(cfg.head))
    self.o_proj = torch.nn.Linear(dim, dim, bias=False)

  def forward(self, u):
    cfg = self.cfg
    B, T, dim = u.shape
    qkv = F.silu(self.conv1d(self.qkv_proj(u).mT)[..., :T].mT)
    q, k, v = qkv.reshape(B, T, 3, cfg.H, -1).unbind(2)
    q, k = (x * (x.square().sum(-1, True) + 1e-6).rsqrt() for x in (q, k))
    theta, eta, alpha = (
      torch.sigmoid(f(u))[..., None, None]
      for f in (self.rate, self.momentum, self.decay)
    )
    theta = cfg.top * theta

    def memory(M, x):
      for n, m in enumerate(M):
        x = torch.einsum("bhj,bhjk->bhk", F.gelu(x) if n else x, m)
      return x

    M = [m.expand(B, -1, -1, -1) for m in self.M]
    S = [torch.zeros_like(m) for m in M]
    o = []
    for t in range(T):
      if t % cfg.batch == 0:
        start = M
      loss = (memory(start, k[:, t]) - v[:, t]).square().mean(-1).sum()
      surprise = torch.autograd.grad(loss, start, create_graph=True)
      S = [
        eta[:, t] * s - theta[:, t] * g
        for s, g in zip(S, surprise, strict=True)
      ]
      M = [(1 - alpha[:, t]) * m + s for m, s in zip(M, S, strict=True)]
      o.append(memory(M, q[:, t]))
    o = torch.stack(o, 1)
    o = o * (o.square().mean(-1, True) + 1e-6).rsqrt() * self.norm
    return self.o_proj(o.reshape(B, T, dim) * F.silu(self.z_proj(u)))


def case(length, batch, layers=2):
  cfg = ours.Config(
    dim=D,
    depth=1,
    length=length,
    head=4,
    batch=batch,
    conv=3,
    layers=layers,
    expand=2,
  )

  def weights(t):
    def both(*names):
      return np.concatenate([t[n] for n in names], 0)

    return {
      "in_proj": {"weight": both("qkv_proj.weight", "z_proj.weight").T},
      "conv": {"weight": t["conv1d.weight"][:, 0].T},
      "gates": {
        "weight": both("rate.weight", "momentum.weight", "decay.weight").T,
        "bias": both("rate.bias", "momentum.bias", "decay.bias"),
      },
      **{f"M_{n}": t[f"M.{n}"] for n in range(layers)},
      "norm": {"weight": t["norm"]},
      "out_proj": {"weight": t["o_proj.weight"].T},
    }

  return Case(ours.Mixer, cfg, Theirs(cfg).double(), weights, length=length)


def start(dim):
  """titans-pytorch's NeuralMemory with a MemoryMLP of depth 2."""
  K = 16
  cfg = ours.Config(dim=dim, depth=5, length=64, head=K)
  H = cfg.H

  def draw():
    def linear(d_out):
      return torch.nn.Linear(dim, d_out)

    def xavier(*shape):
      drawn = [
        torch.nn.init.xavier_uniform_(torch.empty(shape)) for _ in range(H)
      ]
      return torch.stack(drawn).numpy()

    def matrix(d_out):
      return {"weight": linear(d_out).weight.detach().T.numpy()}

    gates = linear(3 * H)
    conv = torch.nn.Conv1d(3 * dim, 3 * dim, 4, groups=3 * dim, bias=False)
    return {
      "in_proj": matrix(4 * dim),
      "conv": {"weight": conv.weight.detach()[:, 0].T.numpy()},
      "gates": {
        "weight": gates.weight.detach().T.numpy(),
        "bias": gates.bias.detach().numpy(),
      },
      "M_0": xavier(K, 4 * K),
      "M_1": xavier(4 * K, K),
      "norm": {"weight": np.ones(K)},
      "out_proj": matrix(dim),
    }

  return ours.Mixer, cfg, draw
