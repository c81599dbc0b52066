"""kda = KimiLinearDeltaAttention; fla's start."""

import numpy as np
from transformers import DynamicCache, KimiLinearConfig
from transformers.models.kimi_linear import modeling_kimi_linear

from arch.mixers import kda as ours
from parity import Case, starts

SOURCE = "transformers KimiLinearDeltaAttention; start: flash-linear-attention"
CASES = [
  dict(length=19, heads=3, head=4, conv=3),
  dict(length=70, heads=2, head=8, conv=4),
]
START = [dict(dim=128)]
D = 12


def case(length, heads, head, conv):
  cfg = ours.Config(
    dim=D, depth=1, length=length, heads=heads, head=head, conv=conv
  )
  own = KimiLinearConfig(
    hidden_size=D,
    linear_head_dim=head,
    linear_num_heads=heads,
    linear_conv_kernel_dim=conv,
    layer_types=["linear_attention", "full_attention"],
    num_hidden_layers=2,
  )

  def weights(t):
    def joined(*names):
      return np.concatenate([t[f"{n}.weight"] for n in names], 0).T

    return {
      "qkv": {"weight": joined("q_proj", "k_proj", "v_proj")},
      "low": {"weight": joined("b_proj", "forget_gate.f_a_proj", "g_a_proj")},
      "decay_proj": {"weight": t["forget_gate.f_b_proj.weight"].T},
      "gate_proj": {"weight": t["g_b_proj.weight"].T},
      "conv": {"weight": t["conv1d.weight"][:, 0].T},
      "dt_bias": t["forget_gate.dt_bias"],
      "A_log": t["forget_gate.A_log"].reshape(-1),
      "norm": {"weight": t["o_norm.weight"]},
      "out_proj": {"weight": t["o_proj.weight"].T},
    }

  def decode(theirs):
    cache = DynamicCache(config=own)
    return lambda x: theirs(x, cache_params=cache)

  theirs = modeling_kimi_linear.KimiLinearDeltaAttention(own, layer_idx=0)
  return Case(ours.Mixer, cfg, theirs, weights, decode=decode, length=length)


def start(dim):
  """models/kda over layers/kda.py."""
  H, K = 256, 2
  cfg = ours.Config(dim=dim, depth=6, length=8, heads=H, head=K)

  def draw():
    return {
      "qkv": {"weight": starts.normal(dim, 3 * H * K)},
      "low": {"weight": starts.normal(dim, H + 2 * K)},
      "decay_proj": {"weight": starts.normal(K, H * K)},
      "gate_proj": {"weight": starts.normal(K, H * K)},
      "conv": {"weight": starts.normal(4, 3 * H * K)},
      "dt_bias": starts.dt_bias(H * K),
      "A_log": starts.uniform(1, 16, H).log().numpy(),
      "norm": {"weight": np.ones(K, np.float32)},
      "out_proj": {"weight": starts.normal(H * K, dim)},
    }

  return ours.Mixer, cfg, draw
