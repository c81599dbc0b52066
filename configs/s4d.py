"""S4D in every block, with SwiGLU."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.pattern = ("s4d",)
  c.model.mixers.s4d = dict(state={"tiny": 6, "small": 32, "full": 64}[size])
  c.model.channels.swiglu = dict(
    width={"tiny": 29, "small": 344, "full": 2048}[size]
  )
  return c.lock()
