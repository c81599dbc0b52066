"""SpaceByte: wide Transformer blocks over the bytes that end words, narrow ones
over all bytes.

Slagle 2024, https://arxiv.org/abs/2404.14408; `full` has the sizes of its
793M + 184M. Not as there: rotary in place of learned positions, RMS norms, a
SwiGLU in the wide blocks, and narrow ones whose attention sees all of the text.
"""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  local = {"tiny": 1, "small": 1, "full": 13}[size]
  c.model.depth = {"tiny": 2, "small": 3, "full": 28}[size]
  if size == "full":
    c.model.dim, c.train.length = 768, 8192
  c.model.pattern = ("attention",)
  c.model.vocab.size = 256
  c.model.mixers.attention = dict(
    head={"tiny": 6, "small": 32, "full": 64}[size]
  )
  c.model.channels.swiglu = dict(
    width={"tiny": 29, "small": 512, "full": 4096}[size]
  )
  c.model.body = "spaces"
  c.model.bodies.spaces = dict(
    encoder=local,
    decoder=local,
    rate={"tiny": 0.5, "small": 0.25, "full": 1344 / 8192}[size],
    outer=({"mixer": "attention", "channel": "gelu"},),
    wider={"tiny": 1.5, "small": 1.5, "full": 2.0}[size],
  )
  return c.lock()
