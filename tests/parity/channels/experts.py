"""experts = the experts of five releases, each with options of its own."""

import importlib

import numpy as np
import torch
from transformers import AutoConfig

from arch.channels import experts as ours
from arch.roles import Buffer
from parity import Case

SOURCE = (
  "transformers DeepseekV3MoE, KimiLinearMoE (scale), OlmoeSparseMoeBlock and "
  "JambaSparseMoeBlock (weights not normalised), Qwen3NextSparseMoeBlock (gate "
  "of the shared expert)"
)
E, K, W = 5, 2, 7
B, D = 2, 12

SIGMOID = dict(
  moe_intermediate_size=W,
  num_local_experts=E,
  n_shared_experts=2,
  n_group=1,
  topk_group=1,
  norm_topk_prob=True,
)
# the class, what transformers is told, and what we are
RELEASES = {
  "deepseek_v3": (
    "DeepseekV3MoE",
    dict(SIGMOID, n_routed_experts=E, routed_scaling_factor=1.0),
    dict(shared=2 * W),
  ),
  "kimi_linear": (
    "KimiLinearMoE",
    dict(SIGMOID, num_experts=E, routed_scaling_factor=2.446),
    dict(shared=2 * W, scale=2.446),
  ),
  "olmoe": (
    "OlmoeSparseMoeBlock",
    dict(num_experts=E, intermediate_size=W, norm_topk_prob=False),
    dict(shared=0, score="softmax", normalised=False),
  ),
  "jamba": (
    "JambaSparseMoeBlock",
    dict(num_experts=E, intermediate_size=W),
    dict(shared=0, score="softmax", normalised=False),
  ),
  "qwen3_next": (
    "Qwen3NextSparseMoeBlock",
    dict(
      num_experts=E,
      moe_intermediate_size=W,
      shared_expert_intermediate_size=9,
      norm_topk_prob=True,
    ),
    dict(shared=9, score="softmax", shared_gate=True),
  ),
}
CASES = [dict(release=release, length=19) for release in RELEASES]
# the house's: DeepSeek-V3's own is a normal of 0.006 at its one width of 7168,
# to which the router alone is scaled; see arch/channels/experts.py
START = []


def weights(t):
  gate, up = np.split(t["experts.gate_up_proj"], 2, 1)
  made = {
    "gate": {"weight": gate.swapaxes(1, 2)},
    "up": {"weight": up.swapaxes(1, 2)},
    "down": {"weight": t["experts.down_proj"].swapaxes(1, 2)},
    "router": t["router.weight" if "router.weight" in t else "gate.weight"].T,
  }
  for shared in ("shared_experts", "shared_expert"):
    if f"{shared}.up_proj.weight" in t:
      made["shared"] = {
        n: {"weight": t[f"{shared}.{n}_proj.weight"].T}
        for n in ("gate", "up", "down")
      }
  if "shared_expert_gate.weight" in t:
    made["shared_gate"] = t["shared_expert_gate.weight"].T
  return made


def case(release, length):
  name, told, fields = RELEASES[release]
  cfg = ours.Config(
    dim=D, depth=1, length=length, experts=E, top=K, width=W, **fields
  )
  own = AutoConfig.for_model(
    release, hidden_size=D, num_experts_per_tok=K, **told
  )
  path = f"transformers.models.{release}.modeling_{release}"
  theirs = getattr(importlib.import_module(path), name)(own)
  bias = torch.zeros(E)
  if cfg.score == "sigmoid":
    bias = torch.linspace(-0.3, 0.3, E)
    theirs.gate.e_score_correction_bias = bias

  def channel(cfg, *, layer, rngs):
    made = ours.Channel(cfg, layer=layer, rngs=rngs)
    made.bias = Buffer(bias.numpy())
    return made

  return Case(channel, cfg, theirs, weights, length=length)
