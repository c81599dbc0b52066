"""xLSTM[7:1]: seven blocks of mLSTM to one of sLSTM.

Beck et al. 2024, https://arxiv.org/abs/2405.04517, section 4. Not as there:
the mLSTM is that of xLSTM 7B, with an MLP after it, where theirs is a block of
twice the width without one; all norms are RMS.
"""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  if size == "tiny":
    c.model.pattern = ("mlstm", "slstm+geglu", "mlstm")
  else:
    c.model.pattern = ("mlstm", "slstm+geglu", *["mlstm"] * 6)
    c.model.depth = {"small": 8, "full": 16}[size]
  c.model.mixers.mlstm = dict(heads={"tiny": 3, "small": 2, "full": 4}[size])
  # Adam's first steps from 0 would show rounding, where `tiny` is tested
  c.model.mixers.slstm = dict(
    heads={"tiny": 3, "small": 2, "full": 4}[size],
    recurrent="uniform" if size == "tiny" else "zeros",
  )
  c.model.channels.swiglu = dict(
    width={"tiny": 29, "small": 344, "full": 2048}[size]
  )
  c.model.channels.geglu = dict(
    width={"tiny": 29, "small": 192, "full": 1024}[size]
  )
  return c.lock()
