"""Jamba: Mamba, attention without positions, SwiGLU and experts.

transformers, models/jamba.
"""

from train.convert.fields import Field, several
from train.convert.rules import Same, under
from train.convert.types import llama, mamba, olmoe
from train.schema import natural, whole

PREFIX, ignored = llama.PREFIX, llama.tied
FIELDS = llama.FIELDS | dict(
  vocab_size=65_536,
  intermediate_size=14_336,
  num_key_value_heads=Field(8, whole, None),
  max_position_embeddings=262_144,
  sliding_window=Field(None),
  num_experts=several(16),
  num_experts_per_tok=2,
  expert_layer_period=2,
  expert_layer_offset=Field(1, natural),
  attn_layer_period=8,
  attn_layer_offset=Field(4, natural),
  mamba_d_state=16,
  mamba_d_conv=4,
  mamba_expand=2,
  mamba_dt_rank=Field("auto", whole),
  mamba_conv_bias=Field(True),
  mamba_proj_bias=Field(False),
)
NAMES = olmoe.NAMES
# how the same numbers are computed
UNREAD = {"use_associative_scan", "use_mamba_kernels", "use_mambapy"}


def kinds(hf, i):
  """The mixer and the channel mixer of block i."""

  def on(kind):
    return i % hf[f"{kind}_layer_period"] == hf[f"{kind}_layer_offset"]

  sparse = on("expert") and hf["num_experts"] > 1
  return (
    "attention" if on("attn") else "mamba",
    "experts" if sparse else "swiglu",
  )


def model(hf):
  found = llama.model(hf)
  rank, width = hf["mamba_dt_rank"], hf["intermediate_size"]
  return found | dict(
    pattern=tuple("+".join(kinds(hf, i)) for i in range(found["depth"])),
    mixers=dict(
      attention=found["mixers"]["attention"] | dict(rotary=0.0),
      mamba=dict(
        state=hf["mamba_d_state"],
        expand=hf["mamba_expand"],
        rank=None if rank == "auto" else rank,
        conv=hf["mamba_d_conv"],
        norm="rms",
        eps=hf["rms_norm_eps"],
      ),
    ),
    channels=dict(
      swiglu=dict(width=width),
      experts=dict(width=width, shared=0, **olmoe.routing(hf, False)),
    ),
  )


def top(hf):
  return llama.top(hf, "final_layernorm")


def block(hf, i):
  own, (mixer, channel) = f"model.layers.{i}", kinds(hf, i)
  if mixer == "attention":
    parts = llama.attention(hf, f"{own}.self_attn")
  else:
    parts = mamba.mixer(f"{own}.mamba")
    for n in ("dt", "B", "C"):
      norm = Same(f"{own}.mamba.{n.lower()}_layernorm.weight")
      parts[f"{n}_norm", "weight"] = norm
  mlp = f"{own}.feed_forward"
  if channel == "swiglu":
    maps = llama.swiglu(mlp)
  else:
    maps = olmoe.experts(hf, mlp, "router")
  return {
    **llama.norms(own, "pre_ff_layernorm"),
    **under(mixer, parts),
    **under("channel", maps),
  }
