"""Jamba: one block in eight attends, the others are Mamba's; every other block
has experts in place of its SwiGLU.

Lieber et al. 2024, https://arxiv.org/abs/2403.19887; `full` is Jamba-v0.1. Its
attention has no positions.
"""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  if size == "full":
    c.model.dim, c.model.depth = 4096, 32
    c.model.vocab = dict(name="full", size=65_536, tied=False)
    c.published = 51_570_323_328
  c.model.pattern = (
    "mamba",
    "mamba+experts",
    "mamba",
    "mamba+experts",
    "attention",
    "mamba+experts",
    "mamba",
    "mamba+experts",
  )
  if size == "tiny":  # one of each
    c.model.pattern = ("mamba", "mamba+experts", "attention")
  if size == "small":
    c.model.depth = 8
  c.model.mixers.mamba = dict(
    state={"tiny": 5, "small": 16, "full": 16}[size], norm="rms"
  )
  c.model.mixers.attention = dict(
    head={"tiny": 6, "small": 32, "full": 128}[size],
    kv_heads={"tiny": 2, "small": 1, "full": 8}[size],
    rotary=0.0,
    qk_norm=False,
    std=0.02,
  )
  width = {"tiny": 29, "small": 344, "full": 14_336}[size]
  c.model.channels.swiglu = dict(width=width)
  c.model.channels.experts = dict(
    experts={"tiny": 5, "small": 8, "full": 16}[size],
    top=2,
    width={"tiny": 7, "small": 24, "full": 14_336}[size],
    shared=0,
    score="softmax",
    normalised=False,
  )
  return c.lock()
