"""Qwen3-Next: three blocks of Gated DeltaNet, then one of gated attention, all
with many small experts.

`full` is Qwen3-Next-80B-A3B; read in transformers, models/qwen3_next.
"""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.depth = {"tiny": 4, "small": 4, "full": 48}[size]
  if size == "full":
    c.model.dim, c.train.length = 2048, 4096
    c.model.vocab = dict(name="full", size=151_936, tied=False)
    c.published = 79_674_391_296
  c.model.pattern = ("gated_deltanet",) * 3 + ("attention",)
  c.model.norm = "rms_plus"
  c.model.channel = "experts"
  c.model.mixers.gated_deltanet = dict(
    head={"tiny": 6, "small": 32, "full": 128}[size],
    heads={"tiny": 4, "small": 4, "full": 32}[size],
    key_heads={"tiny": 2, "small": 2, "full": 16}[size],
    expand=1,
    eps=1e-6,
  )
  c.model.mixers.attention = dict(
    head={"tiny": 8, "small": 32, "full": 256}[size],
    heads={"tiny": 4, "small": 8, "full": 16}[size],
    kv_heads={"tiny": 2, "small": 2, "full": 2}[size],
    rotary=0.25,
    base=1e7,
    norm="rms_plus",
    gate=True,
    std=0.02,
  )
  c.model.channels.experts = dict(
    experts={"tiny": 5, "small": 8, "full": 512}[size],
    top={"tiny": 2, "small": 2, "full": 10}[size],
    width={"tiny": 7, "small": 64, "full": 512}[size],
    score="softmax",
    shared_gate=True,
  )
  c.match.size = "model.channels.experts.width"
  return c.lock()
