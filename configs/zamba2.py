"""Zamba2: Mamba-2 with one or two blocks of attention and an MLP that come back
again and again, with the same weights, and read the embedded tokens, too.

Glorioso et al. 2024, https://arxiv.org/abs/2411.15242; `full` is Zamba2-2.7B.
What such a block computes goes through a map of its place's own and to the next
Mamba-2 only; a place has a low-rank map of its own beside those of the MLP.
"""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  mamba2 = ("mamba2",)
  a, b = (
    (
      {
        "mixer": "attention",
        "channel": "geglu",
        "share": name,
        "own": {"channel": {"tiny": 3, "small": 16, "full": 128}[size]},
        "aside": True,
      },
    )
    for name in "ab"
  )
  pattern = {
    "tiny": (mamba2 + a) * 2 + mamba2,
    "small": (mamba2 * 2 + a) * 2 + mamba2,
    "full": (mamba2 * 6 + a + mamba2 * 6 + b) * 3
    + (mamba2 * 6 + a + mamba2 * 5 + b + mamba2 * 4 + a + mamba2 * 3),
  }[size]
  c.model.pattern, c.model.depth = pattern, len(pattern)
  if size == "full":
    c.model.dim, c.train.length = 2560, 4096
    c.model.norm_eps = 1e-5
    c.model.vocab = dict(name="full", size=32_000, tied=True)
    c.published = 2_662_214_560
  c.model.channel = "none"
  c.model.mixers.mamba2 = dict(
    state={"tiny": 7, "small": 64, "full": 64}[size],
    head={"tiny": 6, "small": 32, "full": 64}[size],
  )
  head = {"tiny": 12, "small": 64, "full": 160}[size]
  c.model.mixers.attention = dict(
    head=head,
    heads={"tiny": 4, "small": 4, "full": 32}[size],
    scale=(head / 2) ** -0.5,
    rotary=0.0,
    qk_norm=False,
    embedding=True,
    std=0.02,
  )
  c.model.channels.geglu = dict(
    width={"tiny": 29, "small": 344, "full": 10_240}[size], exact=True
  )
  c.match.size = "model.channels.geglu.width"
  return c.lock()
