"""Titans' long-term memory with SwiGLU."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.pattern = ("titans",)
  c.model.mixers.titans = dict(
    head={"tiny": 6, "small": 32, "full": 64}[size],
    expand={"tiny": 2, "small": 4, "full": 4}[size],
    batch={"tiny": 4, "small": 16, "full": 16}[size],
  )
  c.model.channels.swiglu = dict(
    width={"tiny": 29, "small": 344, "full": 2048}[size]
  )
  return c.lock()
