"""mamba = MambaMixer."""

from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer

from arch.mixers import mamba as ours
from parity import Case

SOURCE = "transformers MambaMixer"
CASES = [dict(length=19)]
START = []
B, D = 2, 12


def case(length):
  cfg = ours.Config(dim=D, depth=1, length=length, state=5, rank=3, conv=3)
  own = MambaConfig(
    hidden_size=D,
    state_size=5,
    time_step_rank=3,
    conv_kernel=3,
    num_hidden_layers=1,
    use_mambapy=False,
  )

  def weights(t):
    return {
      "in_proj": {"weight": t["in_proj.weight"].T},
      "conv": {
        "weight": t["conv1d.weight"][:, 0].T,
        "bias": t["conv1d.bias"],
      },
      "x_proj": {"weight": t["x_proj.weight"].T},
      "dt_proj": {"weight": t["dt_proj.weight"].T},
      "dt_bias": t["dt_proj.bias"],
      "A_log": t["A_log"],
      "D": t["D"],
      "out_proj": {"weight": t["out_proj.weight"].T},
    }

  return Case(
    ours.Mixer, cfg, MambaMixer(own, layer_idx=0), weights, length=length
  )
