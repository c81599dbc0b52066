"""mamba = MambaMixer; with eigenvalues in [-1, 1] a loop inside its layer."""

import math

import torch
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer

from arch.mixers import mamba as ours
from parity import Case

SOURCE = "transformers MambaMixer; negative: a float64 loop of arXiv 2411.12537"
CASES = [
  dict(length=19),
  dict(length=37, negative=True),
  dict(length=7, negative=True),
]
START = [dict(depth=1), dict(depth=9)]
B, D = 2, 12


class Negative(MambaMixer):
  """Section 4.1: 2 s(x) - 1 for Mamba's s(x), in its equations 2 and 3."""

  def forward(self, u):
    T, R, N = u.shape[1], self.time_step_rank, self.ssm_state_size
    x, z = self.in_proj(u).chunk(2, -1)
    x = torch.nn.functional.silu(self.conv1d(x.mT)[..., :T].mT)
    step, B, C = self.x_proj(x).split([R, N, N], -1)
    dt = torch.nn.functional.softplus(self.dt_proj(step))
    h, ys = 0, []
    for t in range(T):
      s = torch.exp(-torch.exp(self.A_log) * dt[:, t, :, None])
      h = (2 * s - 1) * h + (dt * x)[:, t, :, None] * B[:, t, None]
      ys.append((h * C[:, t, None]).sum(-1))
    y = torch.stack(ys, 1) + self.D * x
    return self.out_proj(y * torch.nn.functional.silu(z))


def case(length, negative=False):
  cfg = ours.Config(
    dim=D,
    depth=1,
    length=length,
    state=5,
    rank=3,
    conv=3,
    negative=negative,
  )
  own = MambaConfig(
    hidden_size=D,
    state_size=5,
    time_step_rank=3,
    conv_kernel=3,
    num_hidden_layers=1,
    use_mambapy=False,
  )

  def weights(t):
    return {
      "in_proj": {"weight": t["in_proj.weight"].T},
      "conv": {
        "weight": t["conv1d.weight"][:, 0].T,
        "bias": t["conv1d.bias"],
      },
      "x_proj": {"weight": t["x_proj.weight"].T},
      "dt_proj": {"weight": t["dt_proj.weight"].T},
      "dt_bias": t["dt_proj.bias"],
      "A_log": t["A_log"],
      "D": t["D"],
      "out_proj": {"weight": t["out_proj.weight"].T},
    }

  made = Negative(own, 0).double() if negative else MambaMixer(own, 0)
  return Case(ours.Mixer, cfg, made, weights, length=length)


def start(depth):
  """As state-spaces/mamba, modules/mamba_simple.py and mixer_seq_simple.py."""
  cfg = ours.Config(dim=96, depth=depth, length=8, state=8)
  E, N, R = cfg.inner, cfg.state, cfg.step_rank

  def linear(*sizes):
    return torch.nn.Linear(*sizes, bias=False).weight.detach().numpy().T

  def draw():
    conv = torch.nn.Conv1d(E, E, cfg.conv, groups=E)
    low, high = math.log(1e-3), math.log(1e-1)
    dt = torch.exp(torch.rand(E) * (high - low) + low).clamp(min=1e-4)
    spread = torch.empty(R, E).uniform_(-(R**-0.5), R**-0.5)
    A = torch.arange(1.0, N + 1).expand(E, N)
    return {
      "in_proj": {"weight": linear(cfg.dim, 2 * E)},
      "conv": {
        "weight": conv.weight[:, 0].detach().numpy().T,
        "bias": conv.bias.detach().numpy(),
      },
      "x_proj": {"weight": linear(E, R + 2 * N)},
      "dt_proj": {"weight": spread.numpy()},
      "dt_bias": (dt + torch.log(-torch.expm1(-dt))).numpy(),
      "A_log": torch.log(A).numpy(),
      "D": torch.ones(E).numpy(),
      "out_proj": {"weight": linear(E, cfg.dim) / depth**0.5},
    }

  return ours.Mixer, cfg, draw
