"""MesaNet with SwiGLU; full as fla's default, of 1.3B parameters."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.pattern = ("mesanet",)
  c.model.mixers.mesanet = dict(
    head={"tiny": 6, "small": 32, "full": 128}[size]
  )
  c.model.channels.swiglu = dict(
    width={"tiny": 29, "small": 344, "full": 5632}[size]
  )
  if size == "full":
    c.model.dim, c.model.depth = 2048, 24
    c.model.vocab.size = 32_000
  return c.lock()
