"""Kimi delta attention with SwiGLU."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.pattern = ("kda",)
  c.model.mixers.kda = dict(
    head={"tiny": 5, "small": 32, "full": 128}[size],
  )
  c.model.channels.swiglu = dict(
    width={"tiny": 29, "small": 344, "full": 2048}[size]
  )
  return c.lock()
