"""Mamba: whole blocks. transformers, models/mamba."""

from train.convert.rules import Rows, Same, Taps, Transposed, demand, under


def model(hf):
  demand(hf, hidden_act="silu", use_bias=False, use_conv_bias=True)
  D = hf["hidden_size"]
  inner = hf.get("intermediate_size") or hf["expand"] * D
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
    vocab=dict(name="full", size=hf["vocab_size"], tied=tied(hf)),
  )


def tied(hf):
  """Where the field is left out, Mamba is tied and Mamba-2 is not."""
  return hf.get("tie_word_embeddings", hf["model_type"] != "mamba2")


def ignored(hf):
  return ["lm_head.weight"] * tied(hf)


def top(hf):
  start = hf.get("bos_token_id")
  found = {
    ("vocab", "embedding"): Rows("backbone.embeddings.weight", start),
    ("norm", "weight"): Same("backbone.norm_f.weight"),
  }
  if not tied(hf):
    found["vocab", "readout"] = Same("lm_head.weight")
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
