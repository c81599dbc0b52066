"""Zamba2: Mamba-2, and blocks of attention and an MLP that share their weights.

transformers, models/zamba2. A hybrid layer there is two blocks here: the shared
one, which stands aside, and the Mamba-2 that reads it.
"""

import math

from train.convert.rules import Joined, Part, Same, Transposed, demand, under
from train.convert.types import llama, mamba2


def layers(hf):
  """Of each of our blocks: the layer there, and which hybrid one it is; None
  for a Mamba-2."""
  found, hybrids = [], 0
  for i, kind in enumerate(hf["layers_block_type"]):
    if kind == "hybrid":
      found.append((i, hybrids))
      hybrids += 1
    elif kind not in ("mamba", "linear_attention"):
      raise ValueError(f"zamba2: unknown layers_block_type {kind!r}")
    found.append((i, None))
  return found


def firsts(hf):
  """The first layers of the blocks that are shared, in turn."""
  hybrid = [i for i, number in layers(hf) if number is not None]
  return hybrid[: hf["num_mem_blocks"]]


def model(hf):
  demand(
    hf,
    hidden_act="gelu",
    add_bias_linear=False,
    use_conv_bias=True,
    use_long_context=False,
    tie_word_embeddings=True,  # which there ties the shared blocks as well
  )
  D, H = hf["hidden_size"], hf["num_attention_heads"]
  # the adapters are as wide as the heads of queries
  demand(hf, num_key_value_heads=H)
  for name, whole, part in (
    ("num_attention_heads", 2 * D, H),
    ("n_mamba_heads", hf["mamba_expand"] * D, hf["n_mamba_heads"]),
  ):
    if whole % part:
      raise ValueError(f"zamba2: {name}={part} must divide {whole}")
  head, rank = 2 * D // H, hf["adapter_rank"]
  ranks = {"channel": rank}
  if hf["use_shared_attention_adapter"]:
    ranks["attention"] = rank
  places, turns = layers(hf), hf["num_mem_blocks"]
  return dict(
    dim=D,
    depth=len(places),
    length=hf["max_position_embeddings"],
    pattern=tuple(
      "mamba2"
      if number is None
      else dict(
        mixer="attention",
        channel="geglu",
        share=str(number % turns),
        own=ranks,
        aside=True,
      )
      for _, number in places
    ),
    channel="none",
    mixers=dict(
      attention=dict(
        head=head,
        heads=H,
        scale=(head / 2) ** -0.5,
        rotary=1.0 if hf["use_mem_rope"] else 0.0,
        base=llama.base(hf),
        qk_norm=False,
        embedding=True,
      ),
      mamba2=dict(
        state=hf["mamba_d_state"],
        head=hf["mamba_expand"] * D // hf["n_mamba_heads"],
        expand=hf["mamba_expand"],
        groups=hf["mamba_ngroups"],
        conv=hf["mamba_d_conv"],
        eps=1e-5,
        dt_limit=(hf["time_step_min"], math.inf),
      ),
    ),
    channels=dict(geglu=dict(width=hf["intermediate_size"], exact=True)),
    norm_eps=hf["rms_norm_eps"],
    vocab=dict(name="full", size=hf["vocab_size"], tied=True),
  )


def ignored(hf):
  """A tied readout, and shared blocks that are there again."""
  again = [
    f"model.layers.{i}.shared_transformer.*"
    for i, number in layers(hf)
    if number is not None and i not in firsts(hf)
  ]
  return [*again, "lm_head.weight"]


def top(hf):
  return llama.top(hf, "final_layernorm")


def block(hf, i):
  layer, number = layers(hf)[i]
  own = f"model.layers.{layer}"
  if number is not None:
    return shared(hf, f"{own}.shared_transformer")
  if hf["layers_block_type"][layer] == "hybrid":
    own = f"{own}.mamba_decoder"
  return {
    ("norm", "weight"): Same(f"{own}.input_layernorm.weight"),
    **under("mamba2", mamba2.mixer(f"{own}.mamba")),
  }


def shared(hf, own):
  W, mlp = hf["intermediate_size"], f"{own}.feed_forward"
  both = f"{mlp}.gate_up_proj.weight"
  H = 2 * hf["hidden_size"]
  return {
    **llama.norms(own, "pre_ff_layernorm"),
    ("attention", "qkv", "weight"): Joined(
      tuple(Transposed(f"{own}.self_attn.{n}_proj.weight") for n in "qkv"),
      (H, H, H),
    ),
    ("attention", "out_proj", "weight"): Transposed(
      f"{own}.self_attn.o_proj.weight"
    ),
    ("channel", "gate"): Part(both, 0, W),
    ("channel", "up"): Part(both, W, 2 * W),
    ("channel", "down"): Transposed(f"{mlp}.down_proj.weight"),
  }


def own(hf, i):
  """The map behind the shared block, and the adapters in it."""
  layer, number = layers(hf)[i]
  turn = firsts(hf)[number % hf["num_mem_blocks"]]
  block, rank = f"model.layers.{turn}.shared_transformer", hf["adapter_rank"]
  mlp = f"{block}.feed_forward.gate_up_proj_adapter_list.{number}"
  found = {
    ("out", "weight"): Transposed(f"model.layers.{layer}.linear.weight"),
    ("channel", "down", "weight"): Transposed(f"{mlp}.0.weight"),
    ("channel", "up", "weight"): Transposed(f"{mlp}.1.weight"),
  }
  if hf["use_shared_attention_adapter"]:
    maps = {
      n: f"{block}.self_attn.linear_{n}_adapter_list.{number}" for n in "qkv"
    }
    found["attention", "down", "weight"] = Joined(
      tuple(Transposed(f"{name}.0.weight") for name in maps.values()),
      (rank,) * 3,
    )
    for n, name in maps.items():
      found["attention", n, "weight"] = Transposed(f"{name}.1.weight")
  return found
