"""Falcon Mamba: Mamba whose r, B and C are normalised.

transformers, models/falcon_mamba.
"""

from train.convert.types import mamba

PREFIX, UNREAD = mamba.PREFIX, mamba.UNREAD
FIELDS = mamba.FIELDS | dict(mixer_rms_eps=1e-6)
block, ignored, top = mamba.block, mamba.ignored, mamba.top


def model(hf):
  found = mamba.model(hf)
  found["mixers"]["mamba"] |= dict(norm="rms_plain", eps=hf["mixer_rms_eps"])
  return found
