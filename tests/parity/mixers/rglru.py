"""rglru = RecurrentGemmaRecurrentBlock."""

import numpy as np
import torch
from transformers import RecurrentGemmaConfig
from transformers.models.recurrent_gemma import modeling_recurrent_gemma

from arch.mixers import rglru as ours
from parity import Case

SOURCE = "transformers RecurrentGemmaRecurrentBlock"
CASES = [dict(length=19)]
START = []
B, D = 2, 12


def case(length):
  cfg = ours.Config(dim=D, depth=1, length=length, width=20, blocks=5, conv=3)
  own = RecurrentGemmaConfig(
    hidden_size=D, lru_width=20, num_attention_heads=5, conv1d_width=3
  )
  theirs = modeling_recurrent_gemma.RecurrentGemmaRecurrentBlock(own, 0)
  extra = dict(
    position_ids=torch.arange(length).expand(B, length),
    attention_mask=None,
    use_cache=False,
  )

  def weights(t):
    def both(y, x):
      return np.concatenate([t[y], t[x]], 0)

    gates = ("rg_lru.recurrent_gate", "rg_lru.input_gate")
    return {
      "in_proj": {
        "weight": both("linear_y.weight", "linear_x.weight").T,
        "bias": both("linear_y.bias", "linear_x.bias"),
      },
      "conv": {
        "weight": t["conv_1d.weight"][:, 0].T,
        "bias": t["conv_1d.bias"],
      },
      "gates": np.concatenate([t[f"{g}_weight"] for g in gates], -1),
      "gates_bias": np.concatenate([t[f"{g}_bias"] for g in gates], -1),
      "decay": t["rg_lru.recurrent_param"],
      "out_proj": {
        "weight": t["linear_out.weight"].T,
        "bias": t["linear_out.bias"],
      },
    }

  return Case(
    ours.Mixer,
    cfg,
    theirs,
    weights,
    call=lambda m, x: m(x, **extra)[0],
    length=length,
  )
