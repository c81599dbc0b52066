"""Jamba: Mamba, attention without positions, SwiGLU and experts.

transformers, models/jamba.
"""

from train.convert.rules import Same, demand, under
from train.convert.types import llama, mamba, olmoe

ignored = llama.ignored


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
  demand(hf, mamba_conv_bias=True, mamba_proj_bias=False, sliding_window=None)
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
