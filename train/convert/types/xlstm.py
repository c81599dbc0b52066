"""xLSTM 7B: mLSTM and SwiGLU, capped logits.

transformers, models/xlstm, with a tensor for each map: it cannot make a model
whose maps are fused.
"""

from train.convert.fields import Field, several
from train.convert.rules import Heads, Joined, Rows, Same, Transposed, under
from train.schema import natural

PREFIX = "backbone"
FIELDS = dict(
  vocab_size=50_304,
  hidden_size=4096,
  num_hidden_layers=several(32),
  num_heads=8,
  qk_dim_factor=0.5,
  v_dim_factor=1.0,
  ffn_proj_factor=2.667,
  ffn_round_up_to_multiple_of=64,
  gate_soft_cap=15.0,
  output_logit_soft_cap=30.0,
  eps=1e-6,
  norm_eps=1e-6,
  add_out_norm=Field(True),
  inference_state_dtype=Field("float32"),
  norm_reduction_force_float32=Field(True),
  tie_word_embeddings=Field(False),
  use_bias=Field(False),
  weight_mode=Field("single"),
  bos_token_id=Field(0, natural, None),
)
NAMES = {"embedding_dim": "hidden_size", "num_blocks": "num_hidden_layers"}
# how the same numbers are computed
UNREAD = {
  "autocast_kernel_dtype",
  "chunk_size",
  "chunkwise_kernel",
  "max_inference_chunksize",
  "mode",
  "return_last_states",
  "sequence_kernel",
  "step_kernel",
}


def sizes(hf):
  """D, and the numbers of all heads' keys and of all heads' values."""
  D = hf["hidden_size"]
  H = hf["num_heads"]
  keys, values = (int(D * hf[f"{n}_dim_factor"]) for n in ("qk", "v"))
  if keys % H or values % H:
    raise ValueError(
      f"xlstm: num_heads={H} must divide the {keys} numbers of all keys and "
      f"the {values} of all values"
    )
  return D, keys, values


def model(hf):
  D, keys, values = sizes(hf)
  H, step = hf["num_heads"], hf["ffn_round_up_to_multiple_of"]
  width = int((D * hf["ffn_proj_factor"] + step - 1) // step) * step
  return dict(
    dim=D,
    depth=hf["num_hidden_layers"],
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
  return {}


def top(hf):
  start = hf["bos_token_id"]
  return {
    ("vocab", "embedding", "rows"): Rows("backbone.embeddings.weight", start),
    ("vocab", "readout", "rows"): Same("lm_head.weight"),
    ("norm", "weight"): Same("backbone.out_norm.weight"),
  }


def block(hf, i):
  own = f"backbone.blocks.{i}"
  return {
    ("norm", "weight"): Same(f"{own}.norm_mlstm.weight"),
    ("channel_norm", "weight"): Same(f"{own}.norm_ffn.weight"),
    **under("mlstm", mlstm(hf, f"{own}.mlstm_layer")),
    ("channel", "gate", "weight"): Transposed(f"{own}.ffn.proj_up_gate.weight"),
    ("channel", "up", "weight"): Transposed(f"{own}.ffn.proj_up.weight"),
    ("channel", "down", "weight"): Transposed(f"{own}.ffn.proj_down.weight"),
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
