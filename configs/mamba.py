"""Mamba: whole blocks, no channel mixer."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  if size == "full":  # mamba-130m
    c.model.depth, c.model.norm_eps = 24, 1e-5
    c.model.vocab = dict(name="full", size=50_280, tied=True)
    c.published = 129_135_360
  c.model.pattern = ("mamba",)
  c.model.channel = "none"
  c.model.mixers.mamba = dict(state={"tiny": 5, "small": 16, "full": 16}[size])
  c.match = dict(size="model.mixers.mamba.state", grows=False)
  return c.lock()
