"""LFM2: gated short convolutions, attention with a norm of each head, SwiGLU.

transformers, models/lfm2. The first releases name some fields otherwise.
"""

from train.convert.fields import Field, several
from train.convert.rules import Same, Taps, Transposed, under
from train.convert.types import llama
from train.schema import natural, text, whole

PREFIX, ignored = llama.PREFIX, llama.ignored
FIELDS = dict(
  vocab_size=65_536,
  hidden_size=2560,
  intermediate_size=12_288,
  num_hidden_layers=several(32),
  num_attention_heads=32,
  num_key_value_heads=8,
  head_dim=Field(None, whole),
  max_position_embeddings=128_000,
  norm_eps=1e-5,
  rope_theta=1e6,
  conv_bias=False,
  conv_L_cache=3,
  block_multiple_of=256,
  block_ffn_dim_multiplier=1.0,
  block_auto_adjust_ff_dim=True,
  full_attn_idxs=Field(None, [natural]),
  layer_types=Field(None, [text]),
  tie_word_embeddings=True,
  bos_token_id=Field(1, natural, None),
)
NAMES = {
  "block_ff_dim": "intermediate_size",
  "tie_embedding": "tie_word_embeddings",
}
MIXERS = {"conv": "shortconv", "full_attention": "attention"}


def kinds(hf):
  """The mixer of each block."""
  blocks = range(hf["num_hidden_layers"])
  names = hf["layer_types"]
  if names is None:
    chosen = hf["full_attn_idxs"]
    chosen = blocks if chosen is None else chosen
    names = ["full_attention" if i in chosen else "conv" for i in blocks]
  if len(names) != len(blocks) or not set(names) <= MIXERS.keys():
    raise ValueError(
      f"layer_types={names} must be {len(blocks)} of {list(MIXERS)}"
    )
  return [MIXERS[name] for name in names]


def width(hf):
  """Hidden units of SwiGLU."""
  W = hf["intermediate_size"]
  if not hf["block_auto_adjust_ff_dim"]:
    return W
  W = int(hf["block_ffn_dim_multiplier"] * int(2 * W / 3))
  step = hf["block_multiple_of"]
  return -(-W // step) * step


def model(hf):
  H, G, K = llama.heads(hf)
  return dict(
    dim=hf["hidden_size"],
    depth=hf["num_hidden_layers"],
    length=hf["max_position_embeddings"],
    pattern=tuple(kinds(hf)),
    channel="swiglu",
    mixers=dict(
      shortconv=dict(conv=hf["conv_L_cache"], bias=hf["conv_bias"]),
      attention=dict(
        head=K,
        heads=H,
        kv_heads=G,
        base=hf["rope_theta"],
        eps=hf["norm_eps"],
      ),
    ),
    channels=dict(swiglu=dict(width=width(hf))),
    norm_eps=hf["norm_eps"],
    vocab=dict(
      name="full", size=hf["vocab_size"], tied=hf["tie_word_embeddings"]
    ),
  )


def top(hf):
  return llama.top(hf, "embedding_norm")


def block(hf, i):
  own, kind = f"model.layers.{i}", kinds(hf)[i]
  if kind == "attention":
    parts = attention(hf, f"{own}.self_attn")
  else:
    parts = shortconv(hf, f"{own}.conv")
  return under(kind, parts) | {
    ("norm", "weight"): Same(f"{own}.operator_norm.weight"),
    ("channel_norm", "weight"): Same(f"{own}.ffn_norm.weight"),
    ("channel", "gate", "weight"): Transposed(f"{own}.feed_forward.w1.weight"),
    ("channel", "up", "weight"): Transposed(f"{own}.feed_forward.w3.weight"),
    ("channel", "down", "weight"): Transposed(f"{own}.feed_forward.w2.weight"),
  }


def attention(hf, own):
  return {
    ("qkv", "weight"): llama.qkv(hf, own, Transposed, "weight"),
    ("out_proj", "weight"): Transposed(f"{own}.out_proj.weight"),
    ("q_norm", "weight"): Same(f"{own}.q_layernorm.weight"),
    ("k_norm", "weight"): Same(f"{own}.k_layernorm.weight"),
  }


def shortconv(hf, own):
  rules = {"in_proj": Transposed, "conv": Taps, "out_proj": Transposed}
  found = {(n, "weight"): r(f"{own}.{n}.weight") for n, r in rules.items()}
  if hf["conv_bias"]:
    found |= {(n, "bias"): Same(f"{own}.{n}.bias") for n in rules}
  return found
