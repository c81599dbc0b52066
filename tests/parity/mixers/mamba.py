"""mamba = MambaMixer, with norms FalconMambaMixer; with eigenvalues in [-1, 1]
a loop inside its layer; mamba_ssm's start."""

import numpy as np
import torch
from transformers import (
  DynamicCache,
  FalconMambaConfig,
  JambaConfig,
  MambaConfig,
)
from transformers.models.falcon_mamba.modeling_falcon_mamba import (
  FalconMambaMixer,
)
from transformers.models.jamba.modeling_jamba import JambaMambaMixer
from transformers.models.mamba.modeling_mamba import MambaMixer

from arch.mixers import mamba as ours
from parity import Case, starts

SOURCE = (
  "transformers MambaMixer, FalconMambaMixer and JambaMambaMixer (norms); "
  "negative: a float64 loop of arXiv 2411.12537; start: mamba_ssm"
)
CASES = [
  dict(length=19, state=5, rank=3, conv=3, norm=None),
  dict(length=70, state=4, rank=2, conv=4, norm="rms_plain"),
  dict(length=23, state=5, rank=3, conv=4, norm="rms"),
  dict(length=37, state=5, rank=3, conv=3, norm=None, negative=True),
]
START = [dict(dim=128, depth=6)]
D = 12


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


def case(length, state, rank, conv, norm, negative=False):
  cfg = ours.Config(
    dim=D,
    depth=1,
    length=length,
    state=state,
    rank=rank,
    conv=conv,
    norm=norm,
    eps=1e-5,
    negative=negative,
  )
  fields = dict(
    hidden_size=D,
    state_size=state,
    time_step_rank=rank,
    conv_kernel=conv,
    num_hidden_layers=1,
    use_mambapy=False,
  )
  if norm is None:
    own = MambaConfig(**fields)
    theirs = Negative(own, 0).double() if negative else MambaMixer(own, 0)
  elif norm == "rms":
    own = JambaConfig(
      hidden_size=D,
      mamba_d_state=state,
      mamba_dt_rank=rank,
      mamba_d_conv=conv,
      num_hidden_layers=1,
      rms_norm_eps=1e-5,
      use_mamba_kernels=False,
    )
    theirs = JambaMambaMixer(own, 0)
  else:
    own = FalconMambaConfig(**fields, mixer_rms_eps=1e-5)
    # told to, it would fill its norms before it makes them
    theirs = FalconMambaMixer(own, 0, initialize_mixer_weights=False)

  def weights(t):
    norms = {
      f"{ours}_norm": {"weight": t[f"{theirs}_layernorm.weight"]}
      for ours, theirs in (("dt", "dt"), ("B", "b"), ("C", "c"))
      if norm == "rms"
    }
    return norms | {
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

  def decode(theirs):
    cache = DynamicCache(config=own)
    return lambda x: theirs(x, cache_params=cache)

  decode = None if negative else decode
  return Case(ours.Mixer, cfg, theirs, weights, decode=decode, length=length)


def start(dim, depth):
  """mamba_simple.Mamba after mixer_seq_simple's _init_weights."""
  cfg = ours.Config(dim=dim, depth=depth, length=8)
  E, N, R = 2 * dim, 16, dim // 16

  def draw():
    A = np.tile(np.arange(1, N + 1, dtype=np.float32), (E, 1))
    return {
      "in_proj": {"weight": starts.linear(dim, 2 * E)},
      "conv": starts.conv(E, 4, bias=True),
      "x_proj": {"weight": starts.linear(E, R + 2 * N)},
      "dt_proj": {"weight": starts.uniform(-(R**-0.5), R**-0.5, R, E).numpy()},
      "dt_bias": starts.dt_bias(E),
      "A_log": np.log(A),
      "D": torch.ones(E).numpy(),
      "out_proj": {"weight": starts.residual(E, dim, depth)},
    }

  return ours.Mixer, cfg, draw
