"""LFM2: gated short convolutions, attention with a norm of each head, SwiGLU.

transformers, models/lfm2. The first releases name some fields otherwise.
"""

from train.convert.rules import Same, Taps, Transposed, under
from train.convert.types import llama

MIXERS = {"conv": "shortconv", "full_attention": "attention"}


def named(hf):
  """The config, with what Llama's calls tie_word_embeddings."""
  tied = hf.get("tie_embedding", hf.get("tie_word_embeddings", True))
  return {**hf, "tie_word_embeddings": tied}


def kinds(hf):
  """The mixer of each block."""
  blocks = range(hf["num_hidden_layers"])
  names = hf.get("layer_types")
  if names is None:
    chosen = hf.get("full_attn_idxs")
    chosen = blocks if chosen is None else chosen
    names = ["full_attention" if i in chosen else "conv" for i in blocks]
  if len(names) != len(blocks) or not set(names) <= MIXERS.keys():
    raise ValueError(
      f"lfm2: layer_types={names} must be {len(blocks)} of {list(MIXERS)}"
    )
  return [MIXERS[name] for name in names]


def width(hf):
  """Hidden units of SwiGLU."""
  W = hf["block_ff_dim" if "block_ff_dim" in hf else "intermediate_size"]
  if not hf.get("block_auto_adjust_ff_dim", True):
    return W
  W = int(hf.get("block_ffn_dim_multiplier", 1.0) * int(2 * W / 3))
  step = hf.get("block_multiple_of", 256)
  return -(-W // step) * step


def model(hf):
  hf = named(hf)
  H, G, K = llama.heads(hf)
  return dict(
    dim=hf["hidden_size"],
    depth=hf["num_hidden_layers"],
    length=hf["max_position_embeddings"],
    pattern=tuple(kinds(hf)),
    channel="swiglu",
    mixers=dict(
      shortconv=dict(conv=hf["conv_L_cache"], bias=hf.get("conv_bias", False)),
      attention=dict(
        head=K,
        heads=H,
        kv_heads=G,
        base=llama.base(hf, 1e6),
        eps=hf["norm_eps"],
      ),
    ),
    channels=dict(swiglu=dict(width=width(hf))),
    norm_eps=hf["norm_eps"],
    vocab=dict(
      name="full", size=hf["vocab_size"], tied=hf["tie_word_embeddings"]
    ),
  )


def ignored(hf):
  return llama.ignored(named(hf))


def top(hf):
  return llama.top(named(hf), "embedding_norm")


def block(hf, i):
  own, kind = f"model.layers.{i}", kinds(hf)[i]
  if kind == "attention":
    parts = attention(hf, f"{own}.self_attn")
  else:
    parts = shortconv(hf, f"{own}.conv")
  return under(kind, parts) | {
    ("norm", "weight"): Same(f"{own}.operator_norm.weight"),
    ("channel_norm", "weight"): Same(f"{own}.ffn_norm.weight"),
    ("channel", "gate"): Transposed(f"{own}.feed_forward.w1.weight"),
    ("channel", "up"): Transposed(f"{own}.feed_forward.w3.weight"),
    ("channel", "down"): Transposed(f"{own}.feed_forward.w2.weight"),
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
  if hf.get("conv_bias", False):
    found |= {(n, "bias"): Same(f"{own}.{n}.bias") for n in rules}
  return found
