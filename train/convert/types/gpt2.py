"""GPT-2: attention without rotary positions, learned ones, LayerNorm, GELU.

transformers, models/gpt2. Its linear maps are stored d_in x d_out, as ours.
"""

import numpy as np

from train.convert.fields import Field, several
from train.convert.rules import Rows, Same
from train.schema import natural, whole

PREFIX = "transformer"
FIELDS = dict(
  vocab_size=50_257,
  n_positions=1024,
  n_embd=768,
  n_layer=several(12),
  n_head=12,
  n_inner=Field(None, whole),
  activation_function=Field("gelu_new"),
  layer_norm_epsilon=1e-5,
  scale_attn_weights=Field(True),
  scale_attn_by_inverse_layer_idx=Field(False),
  add_cross_attention=Field(False),
  tie_word_embeddings=True,
  bos_token_id=Field(50_256, natural, None),
)
NAMES = {
  "hidden_size": "n_embd",
  "max_position_embeddings": "n_positions",
  "num_attention_heads": "n_head",
  "num_hidden_layers": "n_layer",
}
# n_ctx was n_positions again; the order of rounding; other readouts'
UNREAD = {
  "n_ctx",
  "reorder_and_upcast_attn",
  "summary_activation",
  "summary_first_dropout",
  "summary_proj_to_labels",
  "summary_type",
  "summary_use_proj",
}


def model(hf):
  D = hf["n_embd"]
  return dict(
    dim=D,
    depth=hf["n_layer"],
    length=hf["n_positions"],
    pattern=("attention",),
    channel="gelu",
    mixers=dict(
      attention=dict(
        head=D // hf["n_head"], qk_norm=False, bias=True, rotary=0.0
      )
    ),
    channels=dict(gelu=dict(width=hf["n_inner"] or 4 * D, bias=True)),
    norm="layer",
    norm_eps=hf["layer_norm_epsilon"],
    positions=hf["n_positions"],
    vocab=dict(
      name="full", size=hf["vocab_size"], tied=hf["tie_word_embeddings"]
    ),
  )


def ignored(hf):
  """A tied readout, and the masks that old versions saved."""
  found = {}
  if hf["tie_word_embeddings"]:
    found["lm_head.weight"] = "transformer.wte.weight"
  for i in range(hf["n_layer"]):
    own = f"transformer.h.{i}.attn"
    if f"{own}.bias" in hf["tensors"]:
      T = hf["n_positions"]
      found[f"{own}.bias"] = np.tri(T, dtype=bool)[None, None]
    found[f"{own}.masked_bias"] = np.array(-1e4, np.float32)
  return found


def both(path, name):
  """A weight and a bias of one name."""
  return {(*path, n): Same(f"{name}.{n}") for n in ("weight", "bias")}


def top(hf):
  start = hf["bos_token_id"]
  found = {
    ("vocab", "embedding", "rows"): Rows("transformer.wte.weight", start),
    ("vocab", "positions"): Same("transformer.wpe.weight"),
    **both(("norm",), "transformer.ln_f"),
  }
  if not hf["tie_word_embeddings"]:
    found["vocab", "readout", "rows"] = Same("lm_head.weight")
  return found


def block(hf, i):
  own = f"transformer.h.{i}"
  return {
    **both(("norm",), f"{own}.ln_1"),
    **both(("channel_norm",), f"{own}.ln_2"),
    **both(("attention", "qkv"), f"{own}.attn.c_attn"),
    **both(("attention", "out_proj"), f"{own}.attn.c_proj"),
    **both(("channel", "up"), f"{own}.mlp.c_fc"),
    **both(("channel", "down"), f"{own}.mlp.c_proj"),
  }
