"""mamba2 = Mamba2Mixer; mamba_ssm's start."""

import numpy as np
from transformers import DynamicCache, Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from arch.mixers import mamba2 as ours
from parity import Case, starts

SOURCE = "transformers Mamba2Mixer; start: mamba_ssm"
CASES = [
  dict(length=19, head=4, groups=2, conv=3),
  dict(length=70, head=4, groups=6, conv=4),
  dict(length=70, head=8, groups=1, conv=2),
]
START = [dict(dim=128, depth=6)]
D = 12


def case(length, head, groups, conv):
  cfg = ours.Config(
    dim=D,
    depth=1,
    length=length,
    state=5,
    head=head,
    groups=groups,
    conv=conv,
  )
  own = Mamba2Config(
    hidden_size=D,
    num_heads=2 * D // head,
    head_dim=head,
    state_size=5,
    n_groups=groups,
    conv_kernel=conv,
    chunk_size=8,
    num_hidden_layers=1,
  )

  def weights(t):
    return {
      "in_proj": {"weight": t["in_proj.weight"].T},
      "conv": {
        "weight": t["conv1d.weight"][:, 0].T,
        "bias": t["conv1d.bias"],
      },
      "dt_bias": t["dt_bias"],
      "A_log": t["A_log"],
      "D": t["D"],
      "norm": t["norm.weight"],
      "out_proj": {"weight": t["out_proj.weight"].T},
    }

  def decode(theirs):
    cache = DynamicCache(config=own)
    return lambda x: theirs(x, cache_params=cache)

  theirs = Mamba2Mixer(own, layer_idx=0)
  return Case(ours.Mixer, cfg, theirs, weights, decode=decode, length=length)


def start(dim, depth):
  """mamba2.Mamba2 after mixer_seq_simple's _init_weights."""
  G, N, P = 2, 16, 2
  cfg = ours.Config(dim=dim, depth=depth, length=8, state=N, head=P, groups=G)
  E, H = 2 * dim, 2 * dim // P

  def draw():
    return {
      "in_proj": {"weight": starts.linear(dim, 2 * E + 2 * G * N + H)},
      "conv": starts.conv(E + 2 * G * N, 4, bias=True),
      "dt_bias": starts.dt_bias(H),
      "A_log": starts.uniform(1, 16, H).log().numpy(),
      "D": np.ones(H, np.float32),
      "norm": np.ones(E, np.float32),
      "out_proj": {"weight": starts.residual(E, dim, depth)},
    }

  return ours.Mixer, cfg, draw
