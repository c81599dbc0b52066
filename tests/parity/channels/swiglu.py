"""swiglu = LlamaMLP."""

import numpy as np
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from arch.channels import swiglu as ours
from parity import Case

SOURCE = "transformers LlamaMLP"
CASES = [dict(length=19, bias=False), dict(length=19, bias=True)]
# no paper that introduced it says its own: all gated channel mixers here have
# one start of the house, so that arms differ in their mixers alone
START = []
D = 12


def case(length, bias):
  cfg = ours.Config(dim=D, depth=1, length=length, width=19, bias=bias)

  def weights(t):
    names = ("gate", "up", "down")
    made = {n: {"weight": t[f"{n}_proj.weight"].T} for n in names}
    if bias:
      wide = [t["gate_proj.bias"], t["up_proj.bias"]]
      made |= {"wide_bias": np.concatenate(wide)}
      made |= {"down_bias": t["down_proj.bias"]}
    return made

  own = LlamaConfig(
    hidden_size=D, num_attention_heads=1, intermediate_size=19, mlp_bias=bias
  )
  return Case(ours.Channel, cfg, LlamaMLP(own), weights, length=length)
