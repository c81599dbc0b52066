"""LFM2's gated short convolution in every block, with SwiGLU."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.pattern = ("shortconv",)
  # 3 blocks of 5 taps see all of the 13 tokens that `tiny` is tested on
  c.model.mixers.shortconv = dict(
    conv={"tiny": 5, "small": 3, "full": 3}[size], bias=size == "tiny"
  )
  c.model.channels.swiglu = dict(
    width={"tiny": 29, "small": 344, "full": 2048}[size]
  )
  return c.lock()
