"""Zamba2: Mamba-2, and blocks of attention and an MLP that share their weights.

transformers, models/zamba2. A hybrid layer there is two blocks here: the shared
one, which stands aside, and the Mamba-2 that reads it.
"""

import math

from train.convert.fields import Field, several
from train.convert.rules import Joined, Part, Same, Transposed, demand, under
from train.convert.types import llama, mamba2
from train.schema import amount, natural, text, whole

PREFIX = llama.PREFIX
FIELDS = dict(
  vocab_size=32_000,
  max_position_embeddings=4096,
  hidden_size=2560,
  num_hidden_layers=several(54),
  layers_block_type=Field(None, [text]),
  mamba_d_state=64,
  mamba_d_conv=4,
  mamba_expand=2,
  mamba_ngroups=1,
  time_step_min=Field(0.001, amount),
  n_mamba_heads=8,
  use_conv_bias=Field(True),
  add_bias_linear=Field(False),
  intermediate_size=Field(None, whole),
  hidden_act=Field("gelu"),
  num_attention_heads=32,
  num_key_value_heads=Field(None, whole),
  num_mem_blocks=1,
  use_shared_attention_adapter=False,
  adapter_rank=128,
  use_mem_rope=False,
  rope_theta=10_000.0,
  rms_norm_eps=1e-5,
  use_long_context=Field(False),
  tie_word_embeddings=Field(True),  # which there ties the shared blocks as well
  bos_token_id=Field(1, natural, None),
  # which follow from the others
  attention_head_dim=Field(None, whole),
  attention_hidden_size=Field(None, whole),
  mamba_headdim=Field(None, whole),
  hybrid_layer_ids=Field(None, [natural]),
)
NAMES = {"layer_types": "layers_block_type", "head_dim": "attention_head_dim"}
UNREAD = {
  "chunk_size",
  "kv_channels",
  "num_logits_to_keep",
  "num_query_groups",
  "time_step_floor",
  "time_step_max",
  "use_mamba_kernels",
  "use_mem_eff_path",
}
LAYERS = "m" + 7 * "mmmmmh" + "mmmmhmmmhmm"  # where config.json has none


def named(hf):
  """The kind of each layer there."""
  names = hf["layers_block_type"]
  if names is None:
    names = [{"m": "mamba", "h": "hybrid"}[kind] for kind in LAYERS]
  return names


def layers(hf):
  """Of each of our blocks: the layer there, and which hybrid one it is; None
  for a Mamba-2."""
  found, hybrids = [], 0
  for i, kind in enumerate(named(hf)):
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


def width(hf):
  return hf["intermediate_size"] or 4 * hf["hidden_size"]


def model(hf):
  D, H = hf["hidden_size"], hf["num_attention_heads"]
  hybrids = [i for i, number in layers(hf) if number is not None]
  for name, value in dict(
    num_hidden_layers=len(named(hf)),
    num_key_value_heads=H,  # the adapters are as wide as the heads of queries
    attention_head_dim=2 * D // H,
    attention_hidden_size=2 * D,
    mamba_headdim=hf["mamba_expand"] * D // hf["n_mamba_heads"],
    hybrid_layer_ids=hybrids,
  ).items():
    if hf[name] is not None:
      demand(hf, **{name: value})
  for name, all_, part in (
    ("num_attention_heads", 2 * D, H),
    ("n_mamba_heads", hf["mamba_expand"] * D, hf["n_mamba_heads"]),
  ):
    if all_ % part:
      raise ValueError(f"zamba2: {name}={part} must divide {all_}")
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
        base=hf["rope_theta"],
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
    channels=dict(geglu=dict(width=width(hf), exact=True)),
    norm_eps=hf["rms_norm_eps"],
    vocab=dict(name="full", size=hf["vocab_size"], tied=True),
  )


def ignored(hf):
  """A tied readout, and shared blocks that are there again."""
  found, turns = llama.tied(hf), firsts(hf)
  for i, number in layers(hf):
    if number is not None and i not in turns:
      own, first = (
        f"model.layers.{j}.shared_transformer."
        for j in (i, turns[number % len(turns)])
      )
      for name in hf["tensors"]:
        if name.startswith(own):
          found[name] = first + name.removeprefix(own)
  return found


def top(hf):
  return llama.top(hf, "final_layernorm")


def block(hf, i):
  layer, number = layers(hf)[i]
  own = f"model.layers.{layer}"
  if number is not None:
    return shared(hf, f"{own}.shared_transformer")
  if named(hf)[layer] == "hybrid":
    own = f"{own}.mamba_decoder"
  return {
    ("norm", "weight"): Same(f"{own}.input_layernorm.weight"),
    **under("mamba2", mamba2.mixer(f"{own}.mamba")),
  }


def shared(hf, own):
  W, mlp = width(hf), f"{own}.feed_forward"
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
    ("channel", "gate", "weight"): Part(both, 0, W),
    ("channel", "up", "weight"): Part(both, W, 2 * W),
    ("channel", "down", "weight"): Transposed(f"{mlp}.down_proj.weight"),
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
