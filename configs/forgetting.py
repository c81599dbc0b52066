"""Forgetting Transformer (FoX) without positions, with SwiGLU."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.pattern = ("forgetting",)
  c.model.mixers.forgetting = dict(
    head={"tiny": 6, "small": 32, "full": 64}[size],
    kv_heads={"tiny": 2, "small": 0, "full": 0}[size],
  )
  c.model.channels.swiglu = dict(
    width={"tiny": 29, "small": 344, "full": 2048}[size]
  )
  return c.lock()
