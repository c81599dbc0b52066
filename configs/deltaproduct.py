"""Gated DeltaProduct with SwiGLU."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.pattern = ("deltaproduct",)
  c.model.mixers.deltaproduct = dict(
    head={"tiny": 6, "small": 32, "full": 256}[size],
    steps={"tiny": 3, "small": 2, "full": 2}[size],
  )
  c.model.channels.swiglu = dict(
    width={"tiny": 29, "small": 344, "full": 2048}[size]
  )
  return c.lock()
