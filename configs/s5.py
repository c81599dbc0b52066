"""S5 in every block, with SwiGLU."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.pattern = ("s5",)
  c.model.mixers.s5 = dict(
    state={"tiny": 12, "small": 256, "full": 1536}[size],
    blocks={"tiny": 3, "small": 8, "full": 8}[size],
  )
  c.model.channels.swiglu = dict(
    width={"tiny": 29, "small": 344, "full": 2048}[size]
  )
  return c.lock()
