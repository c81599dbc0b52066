"""RecurrentGemma: Griffin with GeGLU, biases, scaled embeddings, capped logits.

transformers, models/recurrent_gemma.
"""

import jax.numpy as jnp

from train.convert.rules import (
  Joined,
  Rows,
  Same,
  Taps,
  Transposed,
  demand,
  under,
)
from train.convert.types import llama

MIXERS = {"recurrent": "rglru", "attention": "attention"}


def kinds(hf):
  """The mixer of each block."""
  names, depth = hf["block_types"], hf["num_hidden_layers"]
  return [MIXERS[names[i % len(names)]] for i in range(depth)]


def recurrent(hf):
  return hf.get("lru_width") or hf["hidden_size"]


def model(hf):
  demand(hf, hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=True)
  H, G, K = llama.heads(hf)
  D, depth = hf["hidden_size"], hf["num_hidden_layers"]
  pattern = [MIXERS[name] for name in hf["block_types"]]
  return dict(
    dim=D,
    depth=depth,
    length=hf["attention_window_size"],
    pattern=tuple(pattern[:depth]),
    channel="geglu",
    mixers=dict(
      rglru=dict(width=recurrent(hf), blocks=H, conv=hf["conv1d_width"]),
      attention=dict(
        head=K,
        heads=H,
        kv_heads=G,
        window=hf["attention_window_size"],
        rotary=llama.rotary(hf, 0.5),
        base=llama.base(hf),
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
  return ["lm_head.weight"]


def top(hf):
  return {
    ("vocab", "embedding"): Rows(
      "model.embed_tokens.weight", hf.get("bos_token_id")
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
    found["channel", name] = Transposed(f"{mlp}.{name}_proj.weight")
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
