"""expert_choice = a loop over experts, each of which takes what is above its
threshold."""

import torch

from arch.channels import expert_choice as ours
from parity import Case
from parity.channels import relu_router
from parity.channels.relu_router import config, weights

SOURCE = "expert threshold routing (2603.11535) in torch, by its equation"
CASES = relu_router.CASES
START = []


class Theirs(relu_router.Theirs):
  def gates(self, x):
    s = torch.sigmoid(self.router(x))
    return s * (s > 0.5)  # the start of half of the experts


def case(length, shared):
  cfg = config(ours, length, shared)
  return Case(ours.Channel, cfg, Theirs(shared), weights, length=length)
