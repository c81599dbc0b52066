"""Mamba-3 with SwiGLU: SISO, in its tiny size MIMO."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.pattern = ("mamba3",)
  c.model.mixers.mamba3 = {
    "tiny": dict(state=8, head=6, groups=2, rank=2),
    "small": dict(state=64, head=64),
    "full": dict(state=128, head=64),
  }[size]
  c.model.channels.swiglu = dict(
    width={"tiny": 29, "small": 344, "full": 2048}[size]
  )
  return c.lock()
