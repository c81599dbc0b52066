"""experts = DeepseekV3MoE."""

import numpy as np
import torch
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3 import modeling_deepseek_v3

from arch.channels import experts as ours
from arch.layers import Buffer
from parity import Case

SOURCE = "transformers DeepseekV3MoE"
CASES = [dict(length=19)]
# the house's: DeepSeek-V3's own is a normal of 0.006 at its one width of 7168,
# to which the router alone is scaled; see arch/channels/experts.py
START = []
B, D = 2, 12


def case(length):
  E, K, W = 5, 2, 7
  cfg = ours.Config(
    dim=D, depth=1, length=length, experts=E, top=K, width=W, shared=2 * W
  )
  own = DeepseekV3Config(
    hidden_size=D,
    moe_intermediate_size=W,
    n_routed_experts=E,
    num_local_experts=E,
    num_experts_per_tok=K,
    n_shared_experts=2,
    n_group=1,
    topk_group=1,
    norm_topk_prob=True,
    routed_scaling_factor=1.0,
  )

  def weights(t):
    gate, up = np.split(t["experts.gate_up_proj"], 2, 1)
    shared = {
      n: t[f"shared_experts.{n}_proj.weight"].T for n in ("gate", "up", "down")
    }
    return {
      "gate": gate.swapaxes(1, 2),
      "up": up.swapaxes(1, 2),
      "down": t["experts.down_proj"].swapaxes(1, 2),
      "router": t["gate.weight"].T,
      "shared": shared,
    }

  theirs = modeling_deepseek_v3.DeepseekV3MoE(own)
  bias = torch.linspace(-0.3, 0.3, E)
  theirs.gate.e_score_correction_bias = bias

  def channel(cfg, *, layer, rngs):
    made = ours.Channel(cfg, layer=layer, rngs=rngs)
    made.bias = Buffer(bias.numpy())
    return made

  return Case(channel, cfg, theirs, weights, length=length)
