"""Mamba: whole blocks. transformers, models/mamba."""

from train.convert.fields import Field, several
from train.convert.rules import Rows, Same, Taps, Transposed, under
from train.schema import natural, whole

PREFIX = "backbone"
FIELDS = dict(
  vocab_size=50_280,
  hidden_size=768,
  intermediate_size=Field(None, whole),  # None: expand hidden_size
  num_hidden_layers=several(32),
  state_size=16,
  expand=2,
  conv_kernel=4,
  time_step_rank=Field("auto", whole),
  layer_norm_epsilon=1e-5,
  hidden_act=Field("silu"),
  use_bias=Field(False),
  use_conv_bias=Field(True),
  tie_word_embeddings=True,
  bos_token_id=Field(0, natural, None),
)
# of the start, of training, and of how the same numbers are computed
UNREAD = {
  "rescale_prenorm_residual",
  "residual_in_fp32",
  "time_step_floor",
  "time_step_init_scheme",
  "time_step_max",
  "time_step_min",
  "time_step_scale",
  "use_associative_scan",
  "use_falcon_mambapy",
  "use_mambapy",
}


def model(hf):
  D = hf["hidden_size"]
  inner = hf["intermediate_size"] or hf["expand"] * D
  if inner % D:
    raise ValueError(
      f"mamba: hidden_size={D} must divide intermediate_size={inner}"
    )
  rank = hf["time_step_rank"]
  return shell(hf) | dict(
    pattern=("mamba",),
    mixers=dict(
      mamba=dict(
        state=hf["state_size"],
        expand=inner // D,
        rank=None if rank == "auto" else rank,
        conv=hf["conv_kernel"],
      )
    ),
  )


def shell(hf):
  """The fields that Mamba and Mamba-2 have in common."""
  return dict(
    dim=hf["hidden_size"],
    depth=hf["num_hidden_layers"],
    length=2048,  # of no meaning: no block's memory has a length
    channel="none",
    norm_eps=hf["layer_norm_epsilon"],
    vocab=dict(
      name="full", size=hf["vocab_size"], tied=hf["tie_word_embeddings"]
    ),
  )


def ignored(hf):
  own = hf["tie_word_embeddings"]
  return {"lm_head.weight": "backbone.embeddings.weight"} if own else {}


def top(hf):
  start = hf["bos_token_id"]
  found = {
    ("vocab", "embedding", "rows"): Rows("backbone.embeddings.weight", start),
    ("norm", "weight"): Same("backbone.norm_f.weight"),
  }
  if not hf["tie_word_embeddings"]:
    found["vocab", "readout", "rows"] = Same("lm_head.weight")
  return found


def common(own):
  """What the mixers of Mamba and Mamba-2 have in common."""
  return {
    ("in_proj", "weight"): Transposed(f"{own}.in_proj.weight"),
    ("conv", "weight"): Taps(f"{own}.conv1d.weight"),
    ("conv", "bias"): Same(f"{own}.conv1d.bias"),
    ("A_log",): Same(f"{own}.A_log"),
    ("D",): Same(f"{own}.D"),
    ("out_proj", "weight"): Transposed(f"{own}.out_proj.weight"),
  }


def mixer(own):
  return common(own) | {
    ("x_proj", "weight"): Transposed(f"{own}.x_proj.weight"),
    ("dt_proj", "weight"): Transposed(f"{own}.dt_proj.weight"),
    ("dt_bias",): Same(f"{own}.dt_proj.bias"),
  }


def block(hf, i):
  own = f"backbone.layers.{i}"
  return {
    ("norm", "weight"): Same(f"{own}.norm.weight"),
    **under("mamba", mixer(f"{own}.mixer")),
  }
