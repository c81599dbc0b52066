"""Transformer++: grouped queries, rotary, query/key norm, SwiGLU."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  if size == "full":  # SmolLM2-135M
    c.model.dim, c.model.depth, c.model.norm_eps = 576, 30, 1e-5
    c.model.vocab = dict(name="full", size=49_152, tied=True)
    c.published = 134_515_008
  c.model.pattern = ("attention",)
  c.model.mixers.attention = dict(
    head={"tiny": 6, "small": 32, "full": 64}[size],
    kv_heads={"tiny": 2, "small": 0, "full": 3}[size],
  )
  if size == "full":
    c.model.mixers.attention.update(qk_norm=False, base=1e5)
  c.model.channels.swiglu = dict(
    width={"tiny": 29, "small": 344, "full": 1536}[size]
  )
  return c.lock()
