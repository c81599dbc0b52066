"""H-Net of one stage: Mamba-2 over bytes around a Transformer over chunks, the
borders of which are learnt.

Hwang et al. 2025, https://arxiv.org/abs/2507.07955; `full` has the sizes of its
1-stage L. The blocks are this lab's: in the outer ones Mamba-2 and no channel
mixer, in the inner ones attention with qk-norm and SwiGLU. A full bucket (see
arch/body) refuses chunks; there none is.
"""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  outer = {"tiny": 1, "small": 1, "full": 4}[size]
  c.model.depth = {"tiny": 2, "small": 3, "full": 22}[size]
  if size == "full":
    c.model.dim, c.train.length = 1024, 8192
  c.model.pattern = ("attention",)
  c.model.mixers.attention = dict(
    head={"tiny": 6, "small": 32, "full": 96}[size]
  )
  c.model.mixers.mamba2 = dict(
    head={"tiny": 6, "small": 32, "full": 64}[size],
    state={"tiny": 5, "small": 32, "full": 128}[size],
  )
  c.model.body = "hnet"
  c.model.channels.swiglu = dict(
    width={"tiny": 29, "small": 512, "full": 4096}[size]
  )
  c.model.bodies.hnet = dict(
    encoder=outer,
    decoder=outer,
    outer=({"mixer": "mamba2", "channel": "none"},),
    rate={"tiny": 0.5, "small": 0.25, "full": 0.25}[size],
    wider=1.5,
  )
  return c.lock()
