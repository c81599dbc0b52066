"""RecurrentGemma: Griffin with GeGLU, biases, scaled embeddings, capped logits.

transformers, models/recurrent_gemma.
"""

import jax.numpy as jnp

from train.convert.fields import Field, several
from train.convert.rules import Joined, Rows, Same, Taps, Transposed, under
from train.convert.types import llama
from train.schema import natural, text, whole

PREFIX = llama.PREFIX
FIELDS = dict(
  vocab_size=256_000,
  hidden_size=2560,
  intermediate_size=7680,
  num_hidden_layers=several(26),
  num_attention_heads=10,
  num_key_value_heads=Field(None, whole),
  head_dim=Field(None, whole),
  lru_width=Field(None, whole),
  attention_window_size=2048,
  conv1d_width=4,
  block_types=Field(("recurrent", "recurrent", "attention"), [text]),
  hidden_activation=Field("gelu_pytorch_tanh"),
  embeddings_scale_by_sqrt_dim=Field(True),  # of the first releases
  logits_soft_cap=30.0,
  rms_norm_eps=1e-6,
  rope_theta=10_000.0,
  partial_rotary_factor=0.5,
  attention_bias=False,
  tie_word_embeddings=Field(True),
  bos_token_id=Field(2, natural, None),
)
NAMES = {"sliding_window": "attention_window_size"}
UNREAD = {"final_w_init_variance_scale", "w_init_variance_scale"}  # the start
MIXERS = {"recurrent": "rglru", "attention": "attention"}


def kinds(hf):
  """The mixer of each block."""
  names, depth = hf["block_types"], hf["num_hidden_layers"]
  if not names or not set(names) <= MIXERS.keys():
    raise ValueError(f"block_types={names} must be of {list(MIXERS)}")
  return [MIXERS[names[i % len(names)]] for i in range(depth)]


def recurrent(hf):
  return hf["lru_width"] or hf["hidden_size"]


def model(hf):
  H, G, K = llama.heads(hf)
  D, depth = hf["hidden_size"], hf["num_hidden_layers"]
  period = len(hf["block_types"])
  return dict(
    dim=D,
    depth=depth,
    length=hf["attention_window_size"],
    pattern=tuple(kinds(hf)[:period]),
    channel="geglu",
    mixers=dict(
      rglru=dict(width=recurrent(hf), blocks=H, conv=hf["conv1d_width"]),
      attention=dict(
        head=K,
        heads=H,
        kv_heads=G,
        window=hf["attention_window_size"],
        rotary=hf["partial_rotary_factor"],
        base=hf["rope_theta"],
        qk_norm=False,
        bias=hf["attention_bias"],
        out_bias=True,
      ),
    ),
    channels=dict(geglu=dict(width=hf["intermediate_size"] // 2, bias=True)),
    norm="rms_plus",
    norm_eps=hf["rms_norm_eps"],
    vocab=dict(
      name="full",
      size=hf["vocab_size"],
      tied=True,
      scale=float(jnp.bfloat16(D**0.5)),  # rounded there too
      softcap=hf["logits_soft_cap"],
    ),
  )


def ignored(hf):
  return llama.tied(hf)


def top(hf):
  return {
    ("vocab", "embedding", "rows"): Rows(
      "model.embed_tokens.weight", hf["bos_token_id"]
    ),
    ("norm", "weight"): Same("model.final_norm.weight"),
  }


def block(hf, i):
  own = f"model.layers.{i}"
  mixer, mlp, kind = f"{own}.temporal_block", f"{own}.mlp_block", kinds(hf)[i]
  W = hf["intermediate_size"] // 2
  found = {
    ("norm", "weight"): Same(f"{own}.temporal_pre_norm.weight"),
    ("channel_norm", "weight"): Same(f"{own}.channel_pre_norm.weight"),
    ("channel", "wide_bias"): Joined(
      tuple(Same(f"{mlp}.{n}_proj.bias") for n in ("gate", "up")), (W, W)
    ),
    ("channel", "down_bias"): Same(f"{mlp}.down_proj.bias"),
  }
  for name in ("gate", "up", "down"):
    found["channel", name, "weight"] = Transposed(f"{mlp}.{name}_proj.weight")
  parts = attention if kind == "attention" else rglru
  return found | under(kind, parts(hf, mixer))


def attention(hf, own):
  found = {
    ("qkv", "weight"): llama.qkv(hf, own, Transposed, "weight"),
    ("out_proj", "weight"): Transposed(f"{own}.o_proj.weight"),
    ("out_proj", "bias"): Same(f"{own}.o_proj.bias"),
  }
  if hf["attention_bias"]:
    found["qkv", "bias"] = llama.qkv(hf, own, Same, "bias")
  return found


def rglru(hf, own):
  E = recurrent(hf)
  K = E // hf["num_attention_heads"]

  def both(rule, part, names, width):
    return Joined(
      tuple(rule(f"{own}.{n}{part}") for n in names), (width, width)
    )

  maps = "linear_y", "linear_x"
  gates = "rg_lru.recurrent_gate", "rg_lru.input_gate"
  return {
    ("in_proj", "weight"): both(Transposed, ".weight", maps, E),
    ("in_proj", "bias"): both(Same, ".bias", maps, E),
    ("conv", "weight"): Taps(f"{own}.conv_1d.weight"),
    ("conv", "bias"): Same(f"{own}.conv_1d.bias"),
    ("gates",): both(Same, "_weight", gates, K),
    ("gates_bias",): both(Same, "_bias", gates, K),
    ("decay",): Same(f"{own}.rg_lru.recurrent_param"),
    ("out_proj", "weight"): Transposed(f"{own}.linear_out.weight"),
    ("out_proj", "bias"): Same(f"{own}.linear_out.bias"),
  }
