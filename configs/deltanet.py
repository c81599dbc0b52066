"""DeltaNet with SwiGLU."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.pattern = ("deltanet",)
  c.model.mixers.deltanet = dict(
    head={"tiny": 6, "small": 32, "full": 128}[size],
    neg_eigval=size == "tiny",
  )
  c.model.channels.swiglu = dict(
    width={"tiny": 29, "small": 344, "full": 2048}[size]
  )
  return c.lock()
