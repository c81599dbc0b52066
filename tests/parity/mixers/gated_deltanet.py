"""gated_deltanet = Qwen3NextGatedDeltaNet."""

import numpy as np
from transformers import Qwen3NextConfig
from transformers.models.qwen3_next import modeling_qwen3_next

from arch.mixers import gated_deltanet as ours
from parity import Case

SOURCE = "transformers Qwen3NextGatedDeltaNet"
CASES = [dict(length=19)]
START = []
B, D = 2, 12


def case(length):
  H, K, V = 3, 4, 8
  cfg = ours.Config(
    dim=D, depth=1, length=length, heads=H, head=K, expand=2, conv=3
  )
  own = Qwen3NextConfig(
    hidden_size=D,
    linear_num_key_heads=H,
    linear_num_value_heads=H,
    linear_key_head_dim=K,
    linear_value_head_dim=V,
    linear_conv_kernel_dim=3,
    num_hidden_layers=1,
    rms_norm_eps=1e-5,
  )

  def weights(t):
    def by_part(w, *widths):  # heads of parts -> parts of heads
      w = w.reshape(H, sum(widths), D)
      parts = np.split(w, np.cumsum(widths)[:-1], 1)
      return np.concatenate([p.reshape(-1, D) for p in parts], 0).T

    return {
      "in_proj": {"weight": by_part(t["in_proj_qkvz.weight"], K, K, V, V)},
      "gates": {"weight": by_part(t["in_proj_ba.weight"], 1, 1)},
      "conv": {"weight": t["conv1d.weight"][:, 0].T},
      "dt_bias": t["dt_bias"],
      "A_log": t["A_log"],
      "norm": {"weight": t["norm.weight"]},
      "out_proj": {"weight": t["out_proj.weight"].T},
    }

  theirs = modeling_qwen3_next.Qwen3NextGatedDeltaNet(own, layer_idx=0)
  return Case(ours.Mixer, cfg, theirs, weights, length=length)
