"""HGRN with SwiGLU."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.pattern = ("hgrn",)
  c.model.mixers.hgrn = dict(expand={"tiny": 2, "small": 1, "full": 1}[size])
  c.model.channels.swiglu = dict(
    width={"tiny": 29, "small": 344, "full": 2048}[size]
  )
  return c.lock()
