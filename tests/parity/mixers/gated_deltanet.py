"""gated_deltanet = Qwen3NextGatedDeltaNet, with groups of heads, and
OlmoHybridGatedDeltaNet, with negative eigenvalues; fla's start."""

import numpy as np
from transformers import DynamicCache, OlmoHybridConfig, Qwen3NextConfig
from transformers.models.olmo_hybrid import modeling_olmo_hybrid
from transformers.models.qwen3_next import modeling_qwen3_next

from arch.mixers import gated_deltanet as ours
from parity import Case, starts

SOURCE = (
  "transformers Qwen3NextGatedDeltaNet and, with neg_eigval, "
  "OlmoHybridGatedDeltaNet; start: flash-linear-attention"
)
CASES = [
  dict(length=19, heads=3, key_heads=3, conv=3, neg_eigval=False),
  dict(length=70, heads=6, key_heads=2, conv=4, neg_eigval=False),
  dict(length=70, heads=3, key_heads=3, conv=4, neg_eigval=True),
]
START = [dict(dim=128)]
D, K, V = 12, 4, 8


def case(length, heads, key_heads, conv, neg_eigval):
  H, G = heads, key_heads
  cfg = ours.Config(
    dim=D,
    depth=1,
    length=length,
    heads=H,
    key_heads=G,
    head=K,
    expand=2,
    conv=conv,
    neg_eigval=neg_eigval,
  )
  own = dict(
    hidden_size=D,
    linear_num_key_heads=G,
    linear_num_value_heads=H,
    linear_key_head_dim=K,
    linear_value_head_dim=V,
    linear_conv_kernel_dim=conv,
    layer_types=["linear_attention", "full_attention"],
    num_hidden_layers=2,
    rms_norm_eps=1e-5,
  )

  if neg_eigval:
    own = OlmoHybridConfig(**own, linear_allow_neg_eigval=True)
    theirs = modeling_olmo_hybrid.OlmoHybridGatedDeltaNet(own, layer_idx=0)
    weights = separate
  else:
    own = Qwen3NextConfig(**own)
    theirs = modeling_qwen3_next.Qwen3NextGatedDeltaNet(own, layer_idx=0)

    def weights(t):
      return grouped(t, G, H // G)

  def decode(theirs):
    cache = DynamicCache(config=own)
    return lambda x: theirs(x, cache_params=cache)

  return Case(ours.Mixer, cfg, theirs, weights, decode=decode, length=length)


def separate(t):
  return {
    "in_proj": {
      "weight": np.concatenate([t[f"{n}_proj.weight"] for n in "qkvg"], 0).T
    },
    "gates": {
      "weight": np.concatenate([t[f"{n}_proj.weight"] for n in "ba"], 0).T
    },
    "conv": {"weight": t["conv1d.weight"][:, 0].T},
    "dt_bias": t["dt_bias"],
    "A_log": t["A_log"],
    "norm": {"weight": t["o_norm.weight"]},
    "out_proj": {"weight": t["o_proj.weight"].T},
  }


def grouped(t, groups, heads):
  """`heads` values a group."""

  def by_part(w, *widths):  # groups of parts -> parts of groups
    w = w.reshape(groups, sum(widths), D)
    parts = np.split(w, np.cumsum(widths)[:-1], 1)
    return np.concatenate([p.reshape(-1, D) for p in parts], 0).T

  qkvz = by_part(t["in_proj_qkvz.weight"], K, K, heads * V, heads * V)
  return {
    "in_proj": {"weight": qkvz},
    "gates": {"weight": by_part(t["in_proj_ba.weight"], heads, heads)},
    "conv": {"weight": t["conv1d.weight"][:, 0].T},
    "dt_bias": t["dt_bias"],
    "A_log": t["A_log"],
    "norm": {"weight": t["norm.weight"]},
    "out_proj": {"weight": t["out_proj.weight"].T},
  }


def start(dim):
  """layers/gated_deltanet.py by itself."""
  H, K = 48, 2
  V = 2 * K
  cfg = ours.Config(dim=dim, depth=6, length=8, heads=H, head=K)

  def draw():
    return {
      "in_proj": {"weight": starts.linear(dim, 2 * H * (K + V))},
      "gates": {"weight": starts.linear(dim, 2 * H)},
      "conv": starts.conv(H * (2 * K + V), 4),
      "dt_bias": starts.dt_bias(H),
      "A_log": starts.uniform(0, 16, H).log().numpy(),
      "norm": {"weight": np.ones(V, np.float32)},
      "out_proj": {"weight": starts.linear(H * V, dim)},
    }

  return ours.Mixer, cfg, draw
