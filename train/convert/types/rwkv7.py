"""RWKV-7 as fla-org/flash-linear-attention saves it, models/rwkv7.

Until April 2025 a layer's six mixes were one tensor, x_x. With fuse_norm theirs
adds 1e-6 to |k k_k|^2, which we do not.
"""

import math

from train.convert.fields import Field, several
from train.convert.rules import Flat, Rows, Same, Stacked, Transposed, under
from train.convert.types import gpt2
from train.schema import natural, positive, whole

PREFIX = "model"
FIELDS = dict(
  vocab_size=32_000,
  hidden_size=2048,
  hidden_ratio=Field(4, positive, None),
  intermediate_size=Field(None, whole),
  num_hidden_layers=several(24),
  head_dim=Field(64, whole, None),
  num_heads=Field(None, whole),
  value_dim=Field(None, whole, [whole]),
  decay_low_rank_dim=64,
  gate_low_rank_dim=128,
  a_low_rank_dim=64,
  v_low_rank_dim=16,
  hidden_act=Field("sqrelu"),
  max_position_embeddings=2048,
  norm_first=True,
  norm_bias=Field(True),
  norm_eps=1e-5,
  attn=Field(None),
  tie_word_embeddings=False,
  bos_token_id=Field(1, natural, None),
)
# how the same numbers are computed
UNREAD = {
  "attn_mode",
  "fuse_cross_entropy",
  "fuse_linear_cross_entropy",
  "fuse_norm",
  "use_l2warp",
}


def head(hf):
  if hf["head_dim"] is None and hf["num_heads"] is None:
    raise ValueError("head_dim and num_heads are both None")
  return hf["head_dim"] or hf["hidden_size"] // hf["num_heads"]


def model(hf):
  D, depth = hf["hidden_size"], hf["num_hidden_layers"]
  value = hf["value_dim"]
  if value not in (None, D, [D] * depth):
    raise ValueError(f"rwkv7: value_dim={value} must be hidden_size={D}")
  ratio = hf["hidden_ratio"] or 4
  width = hf["intermediate_size"] or 32 * math.ceil(int(D * ratio) / 32)
  first = dict(mixer="rwkv7", residual=False)
  return dict(
    dim=D,
    depth=depth,
    length=hf["max_position_embeddings"],
    pattern=(first, *["rwkv7"] * (depth - 1)),
    channel="rwkv",
    mixers=dict(
      rwkv7=dict(
        head=head(hf),
        decay_rank=hf["decay_low_rank_dim"],
        rate_rank=hf["a_low_rank_dim"],
        value_rank=hf["v_low_rank_dim"],
        gate_rank=hf["gate_low_rank_dim"],
        eps=hf["norm_eps"],
      )
    ),
    channels=dict(rwkv=dict(width=width)),
    norm="layer",
    norm_eps=hf["norm_eps"],
    embed_norm=hf["norm_first"],
    vocab=dict(
      name="full", size=hf["vocab_size"], tied=hf["tie_word_embeddings"]
    ),
  )


def ignored(hf):
  own = hf["tie_word_embeddings"]
  return {"lm_head.weight": "model.embeddings.weight"} if own else {}


def top(hf):
  start = hf["bos_token_id"]
  found = {
    ("vocab", "embedding", "rows"): Rows("model.embeddings.weight", start),
    **gpt2.both(("norm",), "model.norm"),
  }
  if hf["norm_first"]:
    found |= gpt2.both(("embed_norm",), "model.layers.0.pre_norm")
  if not hf["tie_word_embeddings"]:
    found["vocab", "readout", "rows"] = Same("lm_head.weight")
  return found


def block(hf, i):
  own = f"model.layers.{i}"
  ffn = f"{own}.ffn"
  return {
    **gpt2.both(("norm",), f"{own}.attn_norm"),
    **gpt2.both(("channel_norm",), f"{own}.ffn_norm"),
    **under("rwkv7", mixer(hf, f"{own}.attn", i > 0)),
    ("channel", "mix"): Same(f"{ffn}.x_k"),
    ("channel", "up", "weight"): Transposed(f"{ffn}.key.weight"),
    ("channel", "down", "weight"): Transposed(f"{ffn}.value.weight"),
  }


def mixer(hf, own, residual):
  D, K = hf["hidden_size"], head(hf)
  mixes = tuple(Flat(f"{own}.x_{n}", (1, 1, D)) for n in "rwkvag")
  old = Same(f"{own}.x_x")
  found = {
    ("mix",): old if old.name in hf["tensors"] else Stacked(mixes),
    ("k_k",): Same(f"{own}.k_k"),
    ("k_a",): Same(f"{own}.k_a"),
    ("r_k",): Flat(f"{own}.r_k", (D // K, K)),
    ("norm",): Same(f"{own}.g_norm.weight"),
    ("norm_bias",): Same(f"{own}.g_norm.bias"),
    ("out_proj", "weight"): Transposed(f"{own}.o_proj.weight"),
  }
  for name in "rkv":
    map_ = Transposed(f"{own}.{name}_proj.weight")
    found[f"{name}_proj", "weight"] = map_
  low_rank = {"decay": "w", "rate": "a", "gate": "g"}
  if residual:
    low_rank["value"] = "v"
  for name, theirs in low_rank.items():
    lora = f"{own}.{theirs}_lora.lora"
    found[name, "down", "weight"] = Transposed(f"{lora}.0.weight")
    found[name, "up", "weight"] = Transposed(f"{lora}.2.weight")
    if name != "gate":
      found[name, "bias"] = Same(f"{lora}.2.bias")
  return found
