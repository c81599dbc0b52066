"""LRU in every block, with SwiGLU."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.pattern = ("lru",)
  c.model.mixers.lru = dict(state={"tiny": 17, "small": 128, "full": 768}[size])
  c.model.channels.swiglu = dict(
    width={"tiny": 29, "small": 344, "full": 2048}[size]
  )
  return c.lock()
