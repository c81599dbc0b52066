"""Qwen3-Next: Gated DeltaNet and gated attention, SwiGLU and experts.

transformers, models/qwen3_next. Its layers that predict further tokens, mtp.*,
which transformers does not read, are kept as they are.
"""

import numpy as np

from train.convert.fields import Field, several
from train.convert.rules import Joined, Permuted, Same, Taps, Transposed, under
from train.convert.types import llama, olmoe
from train.schema import natural, text

PREFIX, top = llama.PREFIX, llama.top
FIELDS = llama.FIELDS | dict(
  vocab_size=151_936,
  hidden_size=2048,
  intermediate_size=5632,
  num_hidden_layers=several(48),
  num_attention_heads=16,
  num_key_value_heads=2,
  head_dim=256,
  max_position_embeddings=32_768,
  partial_rotary_factor=0.25,
  linear_conv_kernel_dim=4,
  linear_key_head_dim=128,
  linear_value_head_dim=128,
  linear_num_key_heads=16,
  linear_num_value_heads=32,
  layer_types=Field(None, [text]),
  full_attention_interval=4,
  mlp_only_layers=Field(None, [natural]),
  decoder_sparse_step=1,
  moe_intermediate_size=512,
  shared_expert_intermediate_size=512,
  num_experts=Field(512, natural, tensors=True),
  num_experts_per_tok=10,
  norm_topk_prob=True,
  bos_token_id=Field(None, natural),
)

MIXERS = {"linear_attention": "gated_deltanet", "full_attention": "attention"}


def ignored(hf):
  further = [name for name in hf["tensors"] if name.startswith("mtp.")]
  return llama.ignored(hf) | dict.fromkeys(further)


def mixers(hf):
  """The kind of mixer of each block."""
  names, blocks = hf["layer_types"], range(hf["num_hidden_layers"])
  if names is None:
    every = hf["full_attention_interval"]
    names = [
      "linear_attention" if (i + 1) % every else "full_attention"
      for i in blocks
    ]
  if len(names) != len(blocks) or not set(names) <= MIXERS.keys():
    raise ValueError(
      f"layer_types={names} must be {len(blocks)} of {list(MIXERS)}"
    )
  return names


def kinds(hf, i):
  """The mixer and the channel mixer of block i."""
  sparse = (
    hf["num_experts"] > 0
    and i not in (hf["mlp_only_layers"] or ())
    and (i + 1) % hf["decoder_sparse_step"] == 0
  )
  return MIXERS[mixers(hf)[i]], "experts" if sparse else "swiglu"


def deltanet(hf):
  """Heads of values, of queries and keys, and the widths of each."""
  return (
    hf["linear_num_value_heads"],
    hf["linear_num_key_heads"],
    hf["linear_key_head_dim"],
    hf["linear_value_head_dim"],
  )


def model(hf):
  H, G, K, V = deltanet(hf)
  if V % K:
    raise ValueError(
      f"qwen3_next: linear_key_head_dim={K} must divide "
      f"linear_value_head_dim={V}"
    )
  found = llama.model(hf)
  eps = hf["rms_norm_eps"]
  return found | dict(
    pattern=tuple("+".join(kinds(hf, i)) for i in range(found["depth"])),
    mixers=dict(
      attention=found["mixers"]["attention"]
      | dict(
        rotary=hf["partial_rotary_factor"],
        qk_norm=True,
        norm="rms_plus",
        eps=eps,
        gate=True,
      ),
      gated_deltanet=dict(
        head=K,
        heads=H,
        key_heads=G,
        expand=V // K,
        conv=hf["linear_conv_kernel_dim"],
        eps=eps,
      ),
    ),
    channels=found["channels"]
    | dict(
      experts=dict(
        width=hf["moe_intermediate_size"],
        shared=hf["shared_expert_intermediate_size"],
        shared_gate=True,
        **olmoe.routing(hf, hf["norm_topk_prob"]),
      )
    ),
    norm="rms_plus",
  )


def grouped(groups, *widths):
  """The order of every group's first part, then of every second part..."""
  whole = np.arange(groups * sum(widths)).reshape(groups, -1)
  parts = np.split(whole, np.cumsum(widths)[:-1], 1)
  return np.concatenate([part.ravel() for part in parts])


def attention(hf, own):
  H, G, K = llama.heads(hf)
  wide = H * K
  q, z = np.split(grouped(H, K, K), 2)
  kv = 2 * wide + np.arange(2 * G * K)
  order = np.concatenate([q, kv, z])

  def qkv(rule, part):
    rules = tuple(rule(f"{own}.{n}_proj.{part}") for n in "qkv")
    return Permuted(Joined(rules, (2 * wide, G * K, G * K)), order)

  found = llama.attention(hf, own)
  found["qkv", "weight"] = qkv(Transposed, "weight")
  if hf["attention_bias"]:
    found["qkv", "bias"] = qkv(Same, "bias")
  for name in ("q_norm", "k_norm"):
    found[name, "weight"] = Same(f"{own}.{name}.weight")
  return found


def gated_deltanet(hf, own):
  H, G, K, V = deltanet(hf)
  R = H // G
  return {
    ("in_proj", "weight"): Permuted(
      Transposed(f"{own}.in_proj_qkvz.weight"),
      grouped(G, K, K, R * V, R * V),
    ),
    ("gates", "weight"): Permuted(
      Transposed(f"{own}.in_proj_ba.weight"), grouped(G, R, R)
    ),
    ("conv", "weight"): Taps(f"{own}.conv1d.weight"),
    ("dt_bias",): Same(f"{own}.dt_bias"),
    ("A_log",): Same(f"{own}.A_log"),
    ("norm", "weight"): Same(f"{own}.norm.weight"),
    ("out_proj", "weight"): Transposed(f"{own}.out_proj.weight"),
  }


def experts(hf, own):
  return {
    **olmoe.experts(hf, own, "gate"),
    **under("shared", llama.swiglu(f"{own}.shared_expert")),
    ("shared_gate",): Transposed(f"{own}.shared_expert_gate.weight"),
  }


def block(hf, i):
  own, (mixer, channel) = f"model.layers.{i}", kinds(hf, i)
  if mixer == "attention":
    parts = attention(hf, f"{own}.self_attn")
  else:
    parts = gated_deltanet(hf, f"{own}.linear_attn")
  mlp = f"{own}.mlp"
  maps = llama.swiglu(mlp) if channel == "swiglu" else experts(hf, mlp)
  return {
    **llama.norms(own),
    **under(mixer, parts),
    **under("channel", maps),
  }
