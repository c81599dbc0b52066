"""relu2 = NanoChatMLP."""

from transformers import NanoChatConfig
from transformers.models.nanochat.modeling_nanochat import NanoChatMLP

from arch.channels import relu2 as ours
from parity import Case

SOURCE = "transformers NanoChatMLP"
CASES = [dict(length=19)]
# the house's: nanochat's own has W_down 0, which no other channel mixer has
# but RWKV's, and changes with its releases
START = []
B, D = 2, 12


def case(length):
  cfg = ours.Config(dim=D, depth=1, length=length, width=19)

  def weights(t):
    return {
      "up": {"weight": t["fc1.weight"].T},
      "down": {"weight": t["fc2.weight"].T},
    }

  theirs = NanoChatMLP(NanoChatConfig(hidden_size=D, intermediate_size=19))
  return Case(ours.Channel, cfg, theirs, weights, length=length)
