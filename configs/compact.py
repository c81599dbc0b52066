"""A recurrence, a factorised BPE vocabulary and small experts."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.data.tokenizer = "bpe"
  c.model.pattern = ("mamba2+none", "mamba2+experts")
  c.model.mixers.mamba2 = dict(
    state={"tiny": 7, "small": 64, "full": 128}[size],
    head={"tiny": 6, "small": 32, "full": 64}[size],
  )
  c.model.channels.experts = dict(
    experts={"tiny": 5, "small": 16, "full": 64}[size],
    top={"tiny": 2, "small": 2, "full": 4}[size],
    width={"tiny": 7, "small": 64, "full": 256}[size],
  )
  c.model.vocab = dict(
    name="lowrank", size=0, rank={"tiny": 5, "small": 64, "full": 128}[size]
  )
  c.match.size = "model.channels.experts.width"
  return c.lock()
