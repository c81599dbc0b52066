"""GPT-2: attention without rotary positions, learned ones, LayerNorm, GELU.

transformers, models/gpt2. Its linear maps are stored d_in x d_out, as ours.
"""

from train.convert.rules import Rows, Same, demand


def model(hf):
  demand(
    hf,
    activation_function="gelu_new",
    scale_attn_weights=True,
    scale_attn_by_inverse_layer_idx=False,
    add_cross_attention=False,
  )
  D = hf["n_embd"]
  return dict(
    dim=D,
    depth=hf["n_layer"],
    length=hf["n_positions"],
    pattern=("attention",),
    channel="gelu",
    mixers=dict(
      attention=dict(
        head=D // hf["n_head"], qk_norm=False, bias=True, rotary=False
      )
    ),
    channels=dict(gelu=dict(width=hf.get("n_inner") or 4 * D, bias=True)),
    norm="layer",
    norm_eps=hf["layer_norm_epsilon"],
    positions=hf["n_positions"],
    vocab=dict(
      name="full",
      size=hf["vocab_size"],
      tied=hf.get("tie_word_embeddings", True),
    ),
  )


def ignored(hf):
  """A tied readout, and the masks that old versions saved."""
  layers = range(hf["n_layer"])
  masks = [
    f"transformer.h.{i}.attn.{n}"
    for i in layers
    for n in ("bias", "masked_bias")
  ]
  return masks + ["lm_head.weight"] * hf.get("tie_word_embeddings", True)


def both(path, name):
  """A weight and a bias of one name."""
  return {(*path, n): Same(f"{name}.{n}") for n in ("weight", "bias")}


def top(hf):
  start = hf.get("bos_token_id")
  found = {
    ("vocab", "embedding"): Rows("transformer.wte.weight", start),
    ("positions",): Same("transformer.wpe.weight"),
    **both(("norm",), "transformer.ln_f"),
  }
  if not hf.get("tie_word_embeddings", True):
    found["vocab", "readout"] = Same("lm_head.weight")
  return found


def block(hf, i):
  own = f"transformer.h.{i}"
  return {
    **both(("norm",), f"{own}.ln_1"),
    **both(("channel_norm",), f"{own}.ln_2"),
    **both(("attention", "qkv"), f"{own}.attn.c_attn"),
    **both(("attention", "out_proj"), f"{own}.attn.c_proj"),
    **both(("channel", "up"), f"{own}.mlp.c_fc"),
    **both(("channel", "down"), f"{own}.mlp.c_proj"),
  }
