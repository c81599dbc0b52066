"""Kimi Linear: Kimi delta attention, latents without positions, experts.

transformers, models/kimi_linear. What it saves and what was published differ in
config.json, and in the name of a dense layer's SwiGLU.
"""

from train.convert.rules import (
  Flat,
  Joined,
  Same,
  Stacked,
  Taps,
  Transposed,
  demand,
  under,
)
from train.convert.types import llama, olmoe

MIXERS = {"linear_attention": "kda", "full_attention": "mla"}
CHANNELS = {"dense": "swiglu", "sparse": "experts"}
# fields that have two names
NAMES = {
  "model_max_length": "max_position_embeddings",
  "moe_renormalize": "norm_topk_prob",
  "num_expert_group": "n_group",
  "num_experts_per_token": "num_experts_per_tok",
  "num_local_experts": "num_experts",
  "num_shared_experts": "n_shared_experts",
}
ignored, top = llama.ignored, llama.top


def named(hf):
  """The config with one name for every field."""
  return {NAMES.get(name, name): value for name, value in hf.items()}


def kinds(hf):
  """The mixer and the channel mixer of each block."""
  depth = hf["num_hidden_layers"]
  mixers, channels = hf.get("layer_types"), hf.get("mlp_layer_types")
  if mixers is None:
    own = hf["linear_attn_config"]
    at = dict.fromkeys(own["full_attn_layers"], "full_attention")
    at |= dict.fromkeys(own["kda_layers"], "linear_attention")
    mixers = [at.get(i + 1) for i in range(depth)]  # counted from 1
  if channels is None:
    dense = hf.get("first_k_dense_replace", 1)
    channels = ["dense" if i < dense else "sparse" for i in range(depth)]
  for given, known in ((mixers, MIXERS), (channels, CHANNELS)):
    if len(given) != depth or not set(given) <= set(known):
      raise ValueError(
        f"kimi_linear: {given} must name {' or '.join(known)} for each of "
        f"{depth} layers"
      )
  return [
    (MIXERS[m], CHANNELS[c]) for m, c in zip(mixers, channels, strict=True)
  ]


def linear(hf):
  """Heads of Kimi delta attention, their width and its convolution's."""
  own = hf.get("linear_attn_config") or {}
  return (
    own.get("num_heads", hf.get("linear_num_heads", 32)),
    own.get("head_dim", hf.get("linear_head_dim", 128)),
    own.get("short_conv_kernel_size", hf.get("linear_conv_kernel_dim", 4)),
  )


def model(hf):
  hf = named(hf)
  demand(
    hf,
    hidden_act="silu",
    attention_bias=False,
    num_key_value_heads=hf["num_attention_heads"],
    mla_use_nope=True,
    n_group=1,
    topk_group=1,
    moe_layer_freq=1,
    moe_router_activation_func="sigmoid",
    num_nextn_predict_layers=0,
    tie_word_embeddings=False,
  )
  heads, head, conv = linear(hf)
  width = hf["moe_intermediate_size"]
  return dict(
    dim=hf["hidden_size"],
    depth=hf["num_hidden_layers"],
    length=hf["max_position_embeddings"],
    pattern=tuple("+".join(kind) for kind in kinds(hf)),
    mixers=dict(
      kda=dict(heads=heads, head=head, conv=conv, eps=hf["rms_norm_eps"]),
      mla=dict(
        heads=hf["num_attention_heads"],
        head=hf["qk_nope_head_dim"],
        value=hf["v_head_dim"],
        rank=hf["kv_lora_rank"],
        query_rank=hf.get("q_lora_rank"),
        rotary=hf["qk_rope_head_dim"],
        base=None,
      ),
    ),
    channels=dict(
      swiglu=dict(width=hf["intermediate_size"]),
      experts=dict(
        olmoe.routing(hf, hf["norm_topk_prob"]),
        width=width,
        shared=hf["n_shared_experts"] * width,
        score="sigmoid",
        balance_rate=1e-3,
        scale=hf["routed_scaling_factor"],
      ),
    ),
    norm_eps=hf["rms_norm_eps"],
    vocab=dict(name="full", size=hf["vocab_size"], tied=False),
  )


def block(hf, i):
  hf, own = named(hf), f"model.layers.{i}"
  mixer, channel = kinds(hf)[i]
  mlp = f"{own}.mlp"  # as published
  if channel == "experts" or f"{mlp}.up_proj.weight" not in hf["tensors"]:
    mlp = f"{own}.block_sparse_moe"
  attention = kda if mixer == "kda" else mla
  maps = experts(hf, mlp) if channel == "experts" else llama.swiglu(mlp)
  return {
    **llama.norms(own),
    **under(mixer, attention(hf, f"{own}.self_attn")),
    **under("channel", maps),
  }


def kda(hf, own):
  H, K, _ = linear(hf)

  def maps(*names):
    return tuple(Transposed(f"{own}.{n}_proj.weight") for n in names)

  convs = tuple(Taps(f"{own}.{n}_conv1d.weight") for n in "qkv")
  return {
    ("qkv", "weight"): Joined(maps(*"qkv"), (H * K,) * 3),
    ("low", "weight"): Joined(maps("b", "f_a", "g_a"), (H, K, K)),
    ("decay_proj", "weight"): Transposed(f"{own}.f_b_proj.weight"),
    ("gate_proj", "weight"): Transposed(f"{own}.g_b_proj.weight"),
    ("conv", "weight"): Joined(convs, (H * K,) * 3),
    ("dt_bias",): Same(f"{own}.dt_bias"),
    ("A_log",): Flat(f"{own}.A_log", (1, 1, H, 1)),
    ("norm", "weight"): Same(f"{own}.o_norm.weight"),
    ("out_proj", "weight"): Transposed(f"{own}.o_proj.weight"),
  }


def mla(hf, own):
  H, R, C = (
    hf[n] for n in ("num_attention_heads", "qk_rope_head_dim", "kv_lora_rank")
  )
  Q, query = H * (hf["qk_nope_head_dim"] + R), "q_proj"
  found = {
    ("norm", "weight"): Same(f"{own}.kv_a_layernorm.weight"),
    ("up", "weight"): Transposed(f"{own}.kv_b_proj.weight"),
    ("out_proj", "weight"): Transposed(f"{own}.o_proj.weight"),
  }
  if hf.get("q_lora_rank"):
    Q, query = hf["q_lora_rank"], "q_a_proj"
    found["q_norm", "weight"] = Same(f"{own}.q_a_layernorm.weight")
    found["q_up", "weight"] = Transposed(f"{own}.q_b_proj.weight")
  maps = tuple(
    Transposed(f"{own}.{n}.weight") for n in (query, "kv_a_proj_with_mqa")
  )
  found["in_proj", "weight"] = Joined(maps, (Q, C + R))
  return found


def experts(hf, own):
  def stacked(name):
    return Stacked(
      tuple(
        Transposed(f"{own}.experts.{e}.{name}.weight")
        for e in range(hf["num_experts"])
      )
    )

  return {
    ("router",): Transposed(f"{own}.gate.weight"),
    ("bias",): Same(f"{own}.gate.e_score_correction_bias"),
    ("gate",): stacked("w1"),
    ("up",): stacked("w3"),
    ("down",): stacked("w2"),
    **under("shared", llama.swiglu(f"{own}.shared_experts")),
  }
