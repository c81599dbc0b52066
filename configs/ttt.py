"""TTT-Linear with SwiGLU; full as its authors' of 125M parameters."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.pattern = ("ttt",)
  c.model.mixers.ttt = dict(
    head={"tiny": 6, "small": 32, "full": 64}[size],
    batch={"tiny": 4, "small": 16, "full": 16}[size],
  )
  c.model.channels.swiglu = dict(
    width={"tiny": 29, "small": 344, "full": 2048}[size]
  )
  if size == "full":
    c.model.vocab = dict(name="full", size=32_000, tied=True)
  return c.lock()
