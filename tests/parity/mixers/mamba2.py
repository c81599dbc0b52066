"""mamba2 = Mamba2Mixer."""

from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from arch.mixers import mamba2 as ours
from parity import Case

SOURCE = "transformers Mamba2Mixer"
CASES = [dict(length=19)]
START = []
B, D = 2, 12


def case(length):
  cfg = ours.Config(
    dim=D, depth=1, length=length, state=5, head=4, groups=2, conv=3
  )
  own = Mamba2Config(
    hidden_size=D,
    num_heads=6,
    head_dim=4,
    state_size=5,
    n_groups=2,
    conv_kernel=3,
    chunk_size=8,
    num_hidden_layers=1,
  )

  def weights(t):
    return {
      "in_proj": {"weight": t["in_proj.weight"].T},
      "conv": {
        "weight": t["conv1d.weight"][:, 0].T,
        "bias": t["conv1d.bias"],
      },
      "dt_bias": t["dt_bias"],
      "A_log": t["A_log"],
      "D": t["D"],
      "norm": t["norm.weight"],
      "out_proj": {"weight": t["out_proj.weight"].T},
    }

  return Case(
    ours.Mixer, cfg, Mamba2Mixer(own, layer_idx=0), weights, length=length
  )
