"""Samba: Mamba and windowed attention in turn, SwiGLU after each.

Ren et al. 2024, https://arxiv.org/abs/2406.07522; `full` is Samba_421M of
microsoft/Samba, lit_gpt/config.py. Its attention has rotary positions and no
norm of queries and keys.
"""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  if size == "full":
    c.model.dim, c.model.depth, c.train.length = 1536, 12, 4096
    c.model.norm_eps = 1e-5
    c.model.vocab = dict(name="full", size=32_000, tied=True)
    c.published = 421_793_280
  c.model.pattern = ("mamba", "attention")
  c.model.mixers.mamba = dict(state={"tiny": 5, "small": 16, "full": 16}[size])
  c.model.mixers.attention = dict(
    head={"tiny": 6, "small": 32, "full": 128}[size],
    window={"tiny": 5, "small": 64, "full": 2048}[size],
    qk_norm=False,
  )
  c.model.channels.swiglu = dict(
    width={"tiny": 29, "small": 344, "full": 4096}[size]
  )
  return c.lock()
