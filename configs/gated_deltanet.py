"""Gated DeltaNet with SwiGLU."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.pattern = ("gated_deltanet",)
  c.model.mixers.gated_deltanet = dict(
    head={"tiny": 6, "small": 32, "full": 256}[size]
  )
  if size == "tiny":
    c.model.mixers.gated_deltanet.update(key_heads=1, neg_eigval=True)
  c.model.channels.swiglu = dict(
    width={"tiny": 29, "small": 344, "full": 2048}[size]
  )
  return c.lock()
