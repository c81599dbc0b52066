"""Hyena with the MLP of its authors."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  if size == "full":
    c.model.dim, c.model.depth = 864, 18
    c.model.vocab = dict(name="full", size=50_264, tied=True)
  c.model.pattern = ("hyena",)
  c.model.channel = "gelu"
  c.model.norm = "layer"
  c.model.norm_eps = 1e-5
  c.model.mixers.hyena = dict(
    filter={"tiny": 7, "small": 32, "full": 64}[size],
    features={"tiny": 5, "small": 33, "full": 33}[size],
  )
  c.model.channels.gelu = dict(
    width={"tiny": 29, "small": 512, "full": 1728}[size], bias=True
  )
  c.match.size = "model.channels.gelu.width"
  return c.lock()
