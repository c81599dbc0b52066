"""Llama: attention with rotary positions, SwiGLU, RMSNorm.

transformers, models/llama; also what its other checkpoints are saved as.
"""

from train.convert import Joined, Rows, Same, Transposed, demand


def heads(hf):
  """Heads of queries, of keys and values, and their width."""
  H = hf["num_attention_heads"]
  K = hf.get("head_dim") or hf["hidden_size"] // H
  if H * K != hf["hidden_size"]:
    raise ValueError(
      f"{hf['model_type']}: {H} heads of head_dim={K} must make up "
      f"hidden_size={hf['hidden_size']}"
    )
  return H, hf.get("num_key_value_heads") or H, K


def model(hf):
  demand(hf, hidden_act="silu", mlp_bias=False, rope_scaling=None)
  rope = hf.get("rope_parameters") or {}
  demand({"model_type": "llama", **rope}, rope_type="default")
  _, G, K = heads(hf)
  return dict(
    dim=hf["hidden_size"],
    depth=hf["num_hidden_layers"],
    length=hf["max_position_embeddings"],
    pattern=("attention",),
    channel="swiglu",
    mixers=dict(
      attention=dict(
        head=K,
        kv_heads=G,
        base=float(rope.get("rope_theta", hf.get("rope_theta", 10_000.0))),
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


def top(hf):
  start = hf.get("bos_token_id")
  found = {
    ("vocab", "embedding"): Rows("model.embed_tokens.weight", start),
    ("norm", "weight"): Same("model.norm.weight"),
  }
  if not hf.get("tie_word_embeddings", False):
    found["vocab", "readout"] = Same("lm_head.weight")
  return found


def block(hf, i):
  own = f"model.layers.{i}"
  attention, mlp = f"{own}.self_attn", f"{own}.mlp"
  found = {
    ("norm", "weight"): Same(f"{own}.input_layernorm.weight"),
    ("channel_norm", "weight"): Same(f"{own}.post_attention_layernorm.weight"),
    ("attention", "qkv", "weight"): qkv(hf, attention, Transposed, "weight"),
    ("attention", "out_proj", "weight"): Transposed(
      f"{attention}.o_proj.weight"
    ),
  }
  for name in ("gate", "up", "down"):
    found["channel", name] = Transposed(f"{mlp}.{name}_proj.weight")
  if hf.get("attention_bias", False):
    found["attention", "qkv", "bias"] = qkv(hf, attention, Same, "bias")
    found["attention", "out_proj", "bias"] = Same(f"{attention}.o_proj.bias")
  return found
