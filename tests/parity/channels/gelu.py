"""gelu = GPT2MLP."""

from transformers import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

from arch.channels import gelu as ours
from parity import Case

SOURCE = "transformers GPT2MLP"
CASES = [dict(length=19)]
# the house's: GPT-2's own is a normal of 0.02 at every width, and biases 0
START = []
B, D = 2, 12


def case(length):
  cfg = ours.Config(dim=D, depth=1, length=length, width=19, bias=True)

  def weights(t):
    return {
      ours: {"weight": t[f"{name}.weight"], "bias": t[f"{name}.bias"]}
      for ours, name in (("up", "c_fc"), ("down", "c_proj"))
    }

  theirs = GPT2MLP(19, GPT2Config(n_embd=D, resid_pdrop=0.0))
  return Case(ours.Channel, cfg, theirs, weights, length=length)
