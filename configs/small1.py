"""Mamba blocks under one table of few symbols: what is left at 125K parameters
of the parts that were tried (docs/smaller.md)."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.dim = {"tiny": 24, "small": 48, "full": 768}[size]
  c.model.pattern = ("mamba",)
  c.model.channel = "none"
  c.model.mixers.mamba = dict(state={"tiny": 5, "small": 13, "full": 16}[size])
  c.model.vocab = dict(name="full", size=0, tied=True)
  c.data.tokenizer = "bpe"
  c.data.vocab = {"tiny": 1024, "small": 1024, "full": 8192}[size]
  c.match = dict(size="model.mixers.mamba.state", grows=False)
  return c.lock()
