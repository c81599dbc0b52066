"""xLSTM 7B: mLSTM and SwiGLU, capped logits.

transformers, models/xlstm, with a tensor for each map: it cannot make a model
whose maps are fused.
"""

from train.convert.rules import (
  Heads,
  Joined,
  Rows,
  Same,
  Transposed,
  demand,
  under,
)


def sizes(hf):
  """D, and the numbers of all heads' keys and of all heads' values."""
  D = hf.get("hidden_size") or hf["embedding_dim"]
  demand(hf, embedding_dim=D)
  H = hf["num_heads"]
  keys, values = (int(D * hf[f"{n}_dim_factor"]) for n in ("qk", "v"))
  if keys % H or values % H:
    raise ValueError(
      f"xlstm: num_heads={H} must divide the {keys} numbers of all keys and "
      f"the {values} of all values"
    )
  return D, keys, values


def model(hf):
  demand(
    hf,
    add_out_norm=True,
    inference_state_dtype="float32",
    norm_reduction_force_float32=True,
    tie_word_embeddings=False,
    use_bias=False,
    weight_mode="single",
  )
  D, keys, values = sizes(hf)
  H, step = hf["num_heads"], hf["ffn_round_up_to_multiple_of"]
  width = int((D * hf["ffn_proj_factor"] + step - 1) // step) * step
  return dict(
    dim=D,
    depth=hf.get("num_blocks") or hf["num_hidden_layers"],
    length=2048,  # of no meaning: no block's memory has a length
    pattern=("mlstm",),
    channel="swiglu",
    mixers=dict(
      mlstm=dict(
        heads=H,
        key=keys // H,
        value=values // H,
        cap=hf["gate_soft_cap"],
        eps=hf["eps"],
        norm_eps=hf["norm_eps"],
      )
    ),
    channels=dict(swiglu=dict(width=width)),
    norm_eps=hf["norm_eps"],
    vocab=dict(
      name="full", size=hf["vocab_size"], softcap=hf["output_logit_soft_cap"]
    ),
  )


def ignored(hf):
  return []


def top(hf):
  start = hf.get("bos_token_id")
  return {
    ("vocab", "embedding"): Rows("backbone.embeddings.weight", start),
    ("vocab", "readout"): Same("lm_head.weight"),
    ("norm", "weight"): Same("backbone.out_norm.weight"),
  }


def block(hf, i):
  own = f"backbone.blocks.{i}"
  return {
    ("norm", "weight"): Same(f"{own}.norm_mlstm.weight"),
    ("channel_norm", "weight"): Same(f"{own}.norm_ffn.weight"),
    **under("mlstm", mlstm(hf, f"{own}.mlstm_layer")),
    ("channel", "gate"): Transposed(f"{own}.ffn.proj_up_gate.weight"),
    ("channel", "up"): Transposed(f"{own}.ffn.proj_up.weight"),
    ("channel", "down"): Transposed(f"{own}.ffn.proj_down.weight"),
  }


def mlstm(hf, own):
  _, keys, values = sizes(hf)
  H = hf["num_heads"]

  def gates(rule, part):
    rules = tuple(rule(f"{own}.{n}gate_preact.{part}") for n in "if")
    return Joined(rules, (H, H))

  maps = tuple(
    Transposed(f"{own}.{n}.weight") for n in ("q", "k", "v", "ogate_preact")
  )
  return {
    ("in_proj", "weight"): Joined(maps, (keys, keys, values, values)),
    ("gates", "weight"): gates(Transposed, "weight"),
    ("gates_bias",): gates(Same, "bias"),
    ("norm", "weight"): Heads(f"{own}.multihead_norm.weight", H),
    ("out_proj", "weight"): Transposed(f"{own}.out_proj.weight"),
  }
