"""Mamba-2 with one block in six of attention."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.depth = {"tiny": 6, "small": 6, "full": 24}[size]
  c.model.pattern = ("mamba2",) * 5 + ("attention",)
  c.model.channel = "none"
  c.model.mixers.mamba2 = dict(
    state={"tiny": 7, "small": 64, "full": 128}[size],
    head={"tiny": 6, "small": 32, "full": 64}[size],
  )
  c.model.mixers.attention = dict(
    head={"tiny": 6, "small": 32, "full": 64}[size]
  )
  c.match = dict(size="model.mixers.mamba2.state", grows=False)
  return c.lock()
