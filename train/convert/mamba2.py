"""Mamba-2: whole blocks. transformers, models/mamba2."""

from train.convert import Same, demand, mamba

ignored, top = mamba.ignored, mamba.top

UNLIMITED = 0.0, float("inf")
AS_JSON = {"__float__": "Infinity"}


def model(hf):
  demand(hf, hidden_act="silu", use_bias=False, use_conv_bias=True)
  low, high = hf.get("time_step_limit", UNLIMITED)
  if low != 0 or high not in (UNLIMITED[1], AS_JSON):
    raise ValueError(
      f"mamba2: time_step_limit={[low, high]} is not supported, only 0 to "
      "infinity"
    )
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
      )
    ),
  )


def block(hf, i):
  mixer, found = mamba.common(i, "mamba2")
  return found | {
    ("mamba2", "dt_bias"): Same(f"{mixer}.dt_bias"),
    ("mamba2", "norm"): Same(f"{mixer}.norm.weight"),
  }
