"""Kimi Linear: Kimi delta attention, latents without positions, experts.

transformers, models/kimi_linear. What it saves and what was published differ in
config.json, and in the name of a dense layer's SwiGLU.
"""

from train.convert.fields import Field, several
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
from train.schema import natural, text, whole

PREFIX, top = llama.PREFIX, llama.top
FIELDS = dict(
  vocab_size=163_840,
  hidden_size=2304,
  intermediate_size=9216,
  moe_intermediate_size=1024,
  num_hidden_layers=several(27),
  num_attention_heads=32,
  num_key_value_heads=Field(32, whole, None),
  n_shared_experts=1,
  routed_scaling_factor=2.446,
  kv_lora_rank=512,
  q_lora_rank=Field(None, whole),
  qk_rope_head_dim=64,
  v_head_dim=128,
  qk_nope_head_dim=128,
  n_group=Field(1),
  topk_group=Field(1, None),
  num_experts_per_tok=8,
  norm_topk_prob=True,
  hidden_act=Field("silu"),
  max_position_embeddings=1_048_576,
  rms_norm_eps=1e-5,
  tie_word_embeddings=Field(False),
  attention_bias=Field(False),
  num_experts=several(256),
  mlp_layer_types=Field(None, [text]),
  layer_types=Field(None, [text]),
  linear_head_dim=128,
  linear_num_heads=32,
  linear_conv_kernel_dim=4,
  bos_token_id=Field(163_584, natural, None),
  # as published
  linear_attn_config=Field(
    None,
    {
      "num_heads?": whole,
      "head_dim?": whole,
      "short_conv_kernel_size?": whole,
      "full_attn_layers?": [whole],
      "kda_layers?": [whole],
    },
  ),
  first_k_dense_replace=Field(1, natural),
  mla_use_nope=Field(True),
  moe_layer_freq=Field(1),
  moe_router_activation_func=Field("sigmoid"),
  num_nextn_predict_layers=Field(0),
)
# positions that are not turned; the whole widths of heads; of one group
UNREAD = {"head_dim", "qk_head_dim", "rope_theta", "use_grouped_topk"}
WITHIN = {  # as published
  "linear_attn_config": {
    "num_heads": "linear_num_heads",
    "head_dim": "linear_head_dim",
    "short_conv_kernel_size": "linear_conv_kernel_dim",
  }
}
MIXERS = {"linear_attention": "kda", "full_attention": "mla"}
CHANNELS = {"dense": "swiglu", "sparse": "experts"}
NAMES = {
  "model_max_length": "max_position_embeddings",
  "moe_renormalize": "norm_topk_prob",
  "num_expert_group": "n_group",
  "num_experts_per_token": "num_experts_per_tok",
  "num_local_experts": "num_experts",
  "num_shared_experts": "n_shared_experts",
}


def ignored(hf):
  return {}


def kinds(hf):
  """The mixer and the channel mixer of each block."""
  depth = hf["num_hidden_layers"]
  mixers, channels = hf["layer_types"], hf["mlp_layer_types"]
  own = hf["linear_attn_config"] or {}
  if mixers is None and {"full_attn_layers", "kda_layers"} <= own.keys():
    at = dict.fromkeys(own["full_attn_layers"], "full_attention")
    at |= dict.fromkeys(own["kda_layers"], "linear_attention")
    mixers = [at.get(i + 1) for i in range(depth)]  # counted from 1
  elif mixers is None:
    full = range(4, depth, 4)
    mixers = [
      f"{'full' if i in full else 'linear'}_attention" for i in range(depth)
    ]
  if channels is None:
    dense = hf["first_k_dense_replace"]
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
  names = ("num_heads", "head_dim", "conv_kernel_dim")
  return tuple(hf[f"linear_{name}"] for name in names)


def model(hf):
  if hf["num_key_value_heads"] is not None:
    demand(hf, num_key_value_heads=hf["num_attention_heads"])
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
        query_rank=hf["q_lora_rank"],
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
  own = f"model.layers.{i}"
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
  if hf["q_lora_rank"]:
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
    ("gate", "weight"): stacked("w1"),
    ("up", "weight"): stacked("w3"),
    ("down", "weight"): stacked("w2"),
    **under("shared", llama.swiglu(f"{own}.shared_experts")),
  }
