"""small1 with small experts behind every mixer."""

from configs import small1


def get_config(size="small"):
  c = small1.get_config(size).unlock()
  c.model.dim = {"tiny": 24, "small": 40, "full": 768}[size]
  c.model.channel = "experts"
  c.model.channels.experts = dict(
    experts={"tiny": 5, "small": 8, "full": 32}[size],
    top=2,
    width={"tiny": 7, "small": 8, "full": 128}[size],
    shared=0,
  )
  c.match = dict(size="model.channels.experts.width", grows=True)
  return c.lock()
