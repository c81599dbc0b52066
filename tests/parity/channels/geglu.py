"""geglu = GemmaMLP."""

from transformers import GemmaConfig
from transformers.models.gemma.modeling_gemma import GemmaMLP

from arch.channels import geglu as ours
from parity import Case

SOURCE = "transformers GemmaMLP"
CASES = [dict(length=19)]
# none is published: Gemma's report does not say its own, and transformers'
# 0.02 is its default for every model
START = []
B, D = 2, 12


def case(length):
  cfg = ours.Config(dim=D, depth=1, length=length, width=19)

  def weights(t):
    return {n: t[f"{n}_proj.weight"].T for n in ("gate", "up", "down")}

  theirs = GemmaMLP(GemmaConfig(hidden_size=D, intermediate_size=19))
  return Case(ours.Channel, cfg, theirs, weights, length=length)
