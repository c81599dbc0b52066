"""LFM2: gated short convolutions, and attention at every third block."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.pattern = ("shortconv", "shortconv", "attention")
  c.model.norm_eps = 1e-5
  c.model.mixers.shortconv = dict(conv=3)
  c.model.mixers.attention = dict(
    head={"tiny": 6, "small": 32, "full": 64}[size],
    kv_heads={"tiny": 2, "small": 2, "full": 8}[size],
    base=1e6,
    eps=1e-5,
    std=0.02,
  )
  c.model.channels.swiglu = dict(
    width={"tiny": 29, "small": 344, "full": 4608}[size]
  )
  if size == "full":  # LFM2-350M, whose attention is in these places
    c.model.dim, c.model.depth = 1024, 16
    c.model.pattern = tuple(
      "attention" if i in (2, 5, 8, 10, 12, 14) else "shortconv"
      for i in range(16)
    )
    c.model.vocab = dict(name="full", size=65_536, tied=True)
    c.published = 354_483_968
  return c.lock()
