"""Griffin's recurrent block alone, with SwiGLU (Hawk, but for its GeGLU)."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.pattern = ("rglru",)
  c.model.channels.swiglu = dict(
    width={"tiny": 29, "small": 344, "full": 2048}[size]
  )
  return c.lock()
