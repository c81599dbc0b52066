"""HGRN2 with SwiGLU."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.pattern = ("hgrn2",)
  c.model.mixers.hgrn2 = dict(head={"tiny": 4, "small": 32, "full": 128}[size])
  c.model.channels.swiglu = dict(
    width={"tiny": 29, "small": 344, "full": 2048}[size]
  )
  return c.lock()
