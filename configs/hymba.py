"""Hymba: Mamba and attention read one input side by side; all blocks but the
first, the middle and the last attend within a window.

Dong et al. 2024, https://arxiv.org/abs/2411.13676; `full` has the sizes of
Hymba-1.5B. Not as there: each side has maps of its own in and out, and is
normalised after its own W_out; attention's values are as wide as its keys; no
meta tokens, and no keys and values that two blocks share.
"""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.depth = depth = {"tiny": 4, "small": 6, "full": 32}[size]
  if size == "full":
    c.model.dim = 1600
    c.model.vocab = dict(name="full", size=32_001, tied=True)
  near = {
    "mixer": "mamba|attention",
    "window": {"tiny": 5, "small": 64, "full": 1024}[size],
  }
  far = {0, (depth - 1) // 2, depth - 1}
  c.model.pattern = tuple(
    "mamba|attention" if i in far else near for i in range(depth)
  )
  c.model.mixers.mamba = dict(
    state={"tiny": 5, "small": 16, "full": 16}[size], norm="rms"
  )
  c.model.mixers.attention = dict(
    head={"tiny": 6, "small": 32, "full": 64}[size],
    kv_heads={"tiny": 2, "small": 2, "full": 5}[size],
    qk_norm=False,
    std=0.02,
  )
  c.model.channels.swiglu = dict(
    width={"tiny": 29, "small": 344, "full": 5504}[size]
  )
  return c.lock()
