"""Mamba-2: whole blocks, no channel mixer."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  if size == "full":  # mamba2-130m
    c.model.depth, c.model.norm_eps = 24, 1e-5
    c.model.vocab = dict(name="full", size=50_288, tied=True)
    c.published = 128_989_632
  c.model.pattern = ("mamba2",)
  c.model.channel = "none"
  c.model.mixers.mamba2 = dict(
    state={"tiny": 7, "small": 64, "full": 128}[size],
    head={"tiny": 6, "small": 64, "full": 64}[size],
  )
  c.match = dict(size="model.mixers.mamba2.state", grows=False)
  return c.lock()
