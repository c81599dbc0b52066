"""Mamba-2: whole blocks. transformers, models/mamba2."""

import math

from train.convert.rules import Same, demand, under
from train.convert.types import mamba

ignored, top = mamba.ignored, mamba.top

AS_JSON = {"__float__": "Infinity"}


def dt_limit(hf):
  """Of the step."""
  low, high = hf.get("time_step_limit", (0.0, math.inf))
  return low, math.inf if high == AS_JSON else high


def model(hf):
  demand(hf, hidden_act="silu", use_bias=False, use_conv_bias=True)
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
