"""geglu = GemmaMLP, in both forms of gelu."""

from transformers import GemmaConfig
from transformers.models.gemma.modeling_gemma import GemmaMLP

from arch.channels import geglu as ours
from parity import Case

SOURCE = "transformers GemmaMLP"
CASES = [dict(length=19, exact=False), dict(length=19, exact=True)]
# none is published: Gemma's report does not say its own, and transformers'
# 0.02 is its default for every model
START = []
B, D = 2, 12


def case(length, exact):
  cfg = ours.Config(dim=D, depth=1, length=length, width=19, exact=exact)

  def weights(t):
    names = ("gate", "up", "down")
    return {n: {"weight": t[f"{n}_proj.weight"].T} for n in names}

  own = GemmaConfig(hidden_size=D, intermediate_size=19)
  own.hidden_act = "gelu" if exact else "gelu_pytorch_tanh"
  theirs = GemmaMLP(own)
  return Case(ours.Channel, cfg, theirs, weights, length=length)
