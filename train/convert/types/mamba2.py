"""Mamba-2: whole blocks. transformers, models/mamba2."""

import math

from train.convert.fields import Field, several
from train.convert.rules import Same, demand, under
from train.convert.types import mamba
from train.schema import amount

PREFIX, ignored, top = mamba.PREFIX, mamba.ignored, mamba.top

# infinity, as JSON and as transformers write it
AS_JSON = (math.inf, {"__float__": "Infinity"})
FIELDS = mamba.FIELDS | dict(
  vocab_size=32_768,
  hidden_size=4096,
  num_hidden_layers=several(64),
  state_size=128,
  num_heads=128,
  head_dim=64,
  n_groups=8,
  time_step_limit=Field((0.0, math.inf), [(amount, *AS_JSON)]),
  tie_word_embeddings=False,
)
del FIELDS["intermediate_size"], FIELDS["time_step_rank"]
UNREAD = mamba.UNREAD | {"chunk_size", "intermediate_size", "time_step_rank"}


def dt_limit(hf):
  """Of the step."""
  limits = [math.inf if x in AS_JSON else x for x in hf["time_step_limit"]]
  if len(limits) != 2 or limits[0] > limits[1]:
    raise ValueError(
      f"time_step_limit={limits} must be the least and the largest step"
    )
  return tuple(limits)


def model(hf):
  inner = hf["expand"] * hf["hidden_size"]
  demand(hf, num_heads=inner // hf["head_dim"])
  return mamba.shell(hf) | dict(
    pattern=("mamba2",),
    mixers=dict(
      mamba2=dict(
        state=hf["state_size"],
        head=hf["head_dim"],
        expand=hf["expand"],
        groups=hf["n_groups"],
        conv=hf["conv_kernel"],
        eps=hf["layer_norm_epsilon"],
        dt_limit=dt_limit(hf),
      )
    ),
  )


def mixer(own):
  return mamba.common(own) | {
    ("dt_bias",): Same(f"{own}.dt_bias"),
    ("norm",): Same(f"{own}.norm.weight"),
  }


def block(hf, i):
  own = f"backbone.layers.{i}"
  return {
    ("norm", "weight"): Same(f"{own}.norm.weight"),
    **under("mamba2", mixer(f"{own}.mixer")),
  }
