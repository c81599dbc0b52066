"""The attention baseline with small experts for channels."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.pattern = ("attention",)
  c.model.channel = "experts"
  c.model.mixers.attention = dict(
    head={"tiny": 6, "small": 32, "full": 64}[size]
  )
  c.model.channels.experts = dict(
    experts={"tiny": 5, "small": 8, "full": 64}[size],
    top={"tiny": 2, "small": 2, "full": 6}[size],
    width={"tiny": 7, "small": 40, "full": 256}[size],
  )
  c.match.size = "model.channels.experts.width"
  return c.lock()
