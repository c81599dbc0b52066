"""Gated linear attention with SwiGLU."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.pattern = ("gla",)
  c.model.mixers.gla = dict(
    heads={"tiny": 3, "small": 2, "full": 4}[size],
    rank={"tiny": 5, "small": 16, "full": 16}[size],
  )
  c.model.channels.swiglu = dict(
    width={"tiny": 29, "small": 344, "full": 2048}[size]
  )
  return c.lock()
