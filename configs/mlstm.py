"""mLSTM with SwiGLU, as xLSTM 7B."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.pattern = ("mlstm",)
  c.model.mixers.mlstm = dict(heads={"tiny": 3, "small": 2, "full": 4}[size])
  c.model.channels.swiglu = dict(
    width={"tiny": 29, "small": 344, "full": 2048}[size]
  )
  return c.lock()
