"""Llama: attention with rotary positions, SwiGLU, RMSNorm.

transformers, models/llama; also what its other checkpoints are saved as.
"""

from train.convert.rules import Joined, Rows, Same, Transposed, demand, under


def heads(hf):
  """Heads of queries, of keys and values, and their width."""
  H = hf["num_attention_heads"]
  K = hf.get("head_dim") or hf["hidden_size"] // H
  return H, hf.get("num_key_value_heads") or H, K


def base(hf, default=10_000.0):
  """Of the rotary angles, which nothing else may change."""
  demand(hf, rope_scaling=None)
  rope = hf.get("rope_parameters") or {}
  told = {"model_type": hf["model_type"], **rope}
  demand(told, rope_type="default", type="default")
  return float(rope.get("rope_theta", hf.get("rope_theta", default)))


def rotary(hf, default):
  """The share of a head that is turned."""
  name = "partial_rotary_factor"
  return (hf.get("rope_parameters") or {}).get(name, hf.get(name, default))


def model(hf):
  demand(hf, hidden_act="silu", mlp_bias=False)
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
        base=base(hf),
        qk_norm=False,
        bias=hf.get("attention_bias", False),
      )
    ),
    channels=dict(swiglu=dict(width=hf["intermediate_size"])),
    norm_eps=hf["rms_norm_eps"],
    vocab=dict(
      name="full",
      size=hf["vocab_size"],
      tied=hf.get("tie_word_embeddings", False),
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
  return names + ["lm_head.weight"] * hf.get("tie_word_embeddings", False)


def top(hf, norm="norm"):
  start = hf.get("bos_token_id")
  found = {
    ("vocab", "embedding"): Rows("model.embed_tokens.weight", start),
    ("norm", "weight"): Same(f"model.{norm}.weight"),
  }
  if not hf.get("tie_word_embeddings", False):
    found["vocab", "readout"] = Same("lm_head.weight")
  return found


def attention(hf, own):
  found = {
    ("qkv", "weight"): qkv(hf, own, Transposed, "weight"),
    ("out_proj", "weight"): Transposed(f"{own}.o_proj.weight"),
  }
  if hf.get("attention_bias", False):
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
    (name,): Transposed(f"{own}.{name}_proj.weight")
    for name in ("gate", "up", "down")
  }


def block(hf, i):
  own = f"model.layers.{i}"
  return {
    **norms(own),
    **under("attention", attention(hf, f"{own}.self_attn")),
    **under("channel", swiglu(f"{own}.mlp")),
  }
