"""Llama: attention with rotary positions, SwiGLU, RMSNorm.

transformers, models/llama; also what its other checkpoints are saved as.
"""

import numpy as np

from train.convert.fields import Field, several
from train.convert.rules import Joined, Rows, Same, Transposed, under
from train.schema import natural, whole

PREFIX = "model"
FIELDS = dict(
  vocab_size=32_000,
  hidden_size=4096,
  intermediate_size=11_008,
  num_hidden_layers=several(32),
  num_attention_heads=32,
  num_key_value_heads=Field(None, whole),
  head_dim=Field(None, whole),
  hidden_act=Field("silu"),
  max_position_embeddings=2048,
  rms_norm_eps=1e-6,
  rope_theta=10_000.0,
  attention_bias=False,
  mlp_bias=Field(False),
  tie_word_embeddings=False,
  bos_token_id=Field(1, natural, None),
)


def heads(hf):
  """Heads of queries, of keys and values, and their width."""
  H = hf["num_attention_heads"]
  K = hf["head_dim"] or hf["hidden_size"] // H
  return H, hf["num_key_value_heads"] or H, K


def model(hf):
  H, G, K = heads(hf)
  return dict(
    dim=hf["hidden_size"],
    depth=hf["num_hidden_layers"],
    length=hf["max_position_embeddings"],
    pattern=("attention",),
    channel="swiglu",
    mixers=dict(
      attention=dict(
        head=K,
        heads=H,
        kv_heads=G,
        base=hf["rope_theta"],
        qk_norm=False,
        bias=hf["attention_bias"],
      )
    ),
    channels=dict(swiglu=dict(width=hf["intermediate_size"])),
    norm_eps=hf["rms_norm_eps"],
    vocab=dict(
      name="full", size=hf["vocab_size"], tied=hf["tie_word_embeddings"]
    ),
  )


def qkv(hf, own, rule, part):
  """Our one map of queries, keys and values."""
  H, G, K = heads(hf)
  rules = tuple(rule(f"{own}.{n}_proj.{part}") for n in "qkv")
  return Joined(rules, (H * K, G * K, G * K))


def ignored(hf):
  """A tied readout, and angles that old versions saved."""
  layers = range(hf["num_hidden_layers"])
  names = [f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in layers]
  return tied(hf) | dict.fromkeys(names, frequencies(hf))


def tied(hf):
  """The embedding, where the folder has it as a readout, too."""
  own = hf["tie_word_embeddings"]
  return {"lm_head.weight": "model.embed_tokens.weight"} if own else {}


def frequencies(hf):
  """Of the rotary angles, for each pair of a head's numbers."""
  _, _, K = heads(hf)
  return np.float32(hf["rope_theta"] ** -(np.arange(0, K, 2) / K))


def top(hf, norm="norm"):
  start = hf["bos_token_id"]
  found = {
    ("vocab", "embedding", "rows"): Rows("model.embed_tokens.weight", start),
    ("norm", "weight"): Same(f"model.{norm}.weight"),
  }
  if not hf["tie_word_embeddings"]:
    found["vocab", "readout", "rows"] = Same("lm_head.weight")
  return found


def attention(hf, own):
  found = {
    ("qkv", "weight"): qkv(hf, own, Transposed, "weight"),
    ("out_proj", "weight"): Transposed(f"{own}.o_proj.weight"),
  }
  if hf["attention_bias"]:
    found["qkv", "bias"] = qkv(hf, own, Same, "bias")
    found["out_proj", "bias"] = Same(f"{own}.o_proj.bias")
  return found


def norms(own, second="post_attention_layernorm"):
  return {
    ("norm", "weight"): Same(f"{own}.input_layernorm.weight"),
    ("channel_norm", "weight"): Same(f"{own}.{second}.weight"),
  }


def swiglu(own):
  return {
    (name, "weight"): Transposed(f"{own}.{name}_proj.weight")
    for name in ("gate", "up", "down")
  }


def block(hf, i):
  own = f"model.layers.{i}"
  return {
    **norms(own),
    **under("attention", attention(hf, f"{own}.self_attn")),
    **under("channel", swiglu(f"{own}.mlp")),
  }
