"""RetNet with its authors' GELU channels of 2 dim."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.pattern = ("retnet",)
  c.model.channel = "gelu"
  c.model.mixers.retnet = dict(head={"tiny": 6, "small": 32, "full": 256}[size])
  c.model.channels.gelu = dict(
    width={"tiny": 37, "small": 256, "full": 1536}[size]
  )
  c.match.size = "model.channels.gelu.width"
  return c.lock()
