"""OLMoE: Llama with a norm over all heads, and experts without balancing.

transformers, models/olmoe. Each expert's maps are tensors of their own.
"""

from train.convert.fields import Field, several
from train.convert.rules import Same, Stacked, Transposed, under
from train.convert.types import llama
from train.schema import natural

PREFIX = llama.PREFIX
FIELDS = llama.FIELDS | dict(
  vocab_size=50_304,
  hidden_size=2048,
  intermediate_size=2048,
  num_hidden_layers=several(16),
  num_attention_heads=16,
  max_position_embeddings=4096,
  rms_norm_eps=1e-5,
  clip_qkv=Field(None),
  sliding_window=Field(None),
  num_experts=several(64),
  num_experts_per_tok=8,
  norm_topk_prob=False,
  bos_token_id=Field(None, natural),
)
NAMES = {"num_local_experts": "num_experts"}
ignored, top = llama.ignored, llama.top


def model(hf):
  found = llama.model(hf)
  found["mixers"]["attention"] |= dict(
    qk_norm=True, whole=True, eps=hf["rms_norm_eps"]
  )
  return found | dict(
    channel="experts",
    channels=dict(
      experts=dict(
        width=hf["intermediate_size"],
        shared=0,
        **routing(hf, hf["norm_topk_prob"]),
      )
    ),
  )


def routing(hf, normalised):
  """How a token's experts are chosen and weighted; no bias balances them."""
  experts, top = hf["num_experts"], hf["num_experts_per_tok"]
  if normalised and top == 1 < experts:
    raise ValueError(
      f"{hf['model_type']}: norm_topk_prob=True is not supported with "
      f"num_experts_per_tok=1 of {experts}: no gradient would reach the router"
    )
  return dict(
    experts=experts,
    top=top,
    score="softmax",
    normalised=normalised,
    balance_rate=0.0,
  )


def block(hf, i):
  own = f"model.layers.{i}"
  attention = f"{own}.self_attn"
  parts = llama.attention(hf, attention)
  for name in ("q_norm", "k_norm"):
    parts[name, "weight"] = Same(f"{attention}.{name}.weight")
  return {
    **llama.norms(own),
    **under("attention", parts),
    **under("channel", experts(hf, f"{own}.mlp", "gate")),
  }


def experts(hf, own, router):
  """The experts at `own`."""

  def stacked(name):
    return Stacked(
      tuple(
        Transposed(f"{own}.experts.{e}.{name}_proj.weight")
        for e in range(hf["num_experts"])
      )
    )

  return {
    ("router",): Transposed(f"{own}.{router}.weight"),
    **{(name, "weight"): stacked(name) for name in ("gate", "up", "down")},
  }
