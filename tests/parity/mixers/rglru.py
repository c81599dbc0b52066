"""rglru = RecurrentGemmaRecurrentBlock; recurrentgemma's start."""

import math

import numpy as np
import torch
from transformers import RecurrentGemmaConfig
from transformers.models.recurrent_gemma import modeling_recurrent_gemma

from arch.mixers import rglru as ours
from parity import Case, starts

SOURCE = (
  "transformers RecurrentGemmaRecurrentBlock; start: recurrentgemma, but the "
  "decay as in the paper, section 2.4"
)
CASES = [
  dict(length=19, width=20, blocks=5, conv=3),
  dict(length=70, width=12, blocks=1, conv=4),
]
START = [dict(dim=128, depth=6)]
B, D = 2, 12


def case(length, width, blocks, conv):
  cfg = ours.Config(
    dim=D, depth=1, length=length, width=width, blocks=blocks, conv=conv
  )
  own = RecurrentGemmaConfig(
    hidden_size=D,
    lru_width=width,
    num_attention_heads=blocks,
    conv1d_width=conv,
  )
  theirs = modeling_recurrent_gemma.RecurrentGemmaRecurrentBlock(own, 0)

  def call(theirs, x):
    position_ids = torch.arange(length).expand(B, length)
    return theirs(x, position_ids, None, use_cache=False)[0]

  def decode(theirs):
    # its own would be as wide as its input
    theirs.conv1d_state = torch.zeros(B, width, conv - 1)
    theirs.rg_lru.recurrent_states = torch.zeros(B, width)
    positions = iter(range(length))

    def step(x):
      position_ids = torch.full((B, 1), next(positions))
      return theirs(x, position_ids, None)[0]

    return step

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
    ours.Mixer, cfg, theirs, weights, call=call, decode=decode, length=length
  )


def start(dim, depth):
  """torch/layers.py and modules.py, whose last maps get 2 / depth."""
  E, H = 192, 4
  K = E // H
  cfg = ours.Config(dim=dim, depth=depth, length=8, width=E, blocks=H)

  def normal(variance, *shape):
    return torch.nn.init.normal_(torch.empty(shape), 0, math.sqrt(variance))

  def draw():
    softplus = -starts.uniform(0.9, 0.999, E).log() / 8
    return {
      "in_proj": {
        "weight": normal(1 / dim, dim, 2 * E).numpy(),
        "bias": np.zeros(2 * E, np.float32),
      },
      "conv": {
        "weight": normal(0.01 / 4, 4, E).numpy(),
        "bias": np.zeros(E, np.float32),
      },
      "gates": normal(1 / K, H, K, 2 * K).numpy(),
      "gates_bias": np.zeros((H, 2 * K), np.float32),
      "decay": softplus.expm1().log().numpy(),
      "out_proj": {
        "weight": normal(2 / depth / E, E, dim).numpy(),
        "bias": np.zeros(dim, np.float32),
      },
    }

  return ours.Mixer, cfg, draw
