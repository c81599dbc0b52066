"""Kimi Linear: three Kimi delta attentions, then one of latents, without
positions; many small experts."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.pattern = ("kda", "kda", "kda", "mla")
  c.model.channel = "experts"
  c.model.norm_eps = 1e-5
  c.model.mixers.kda = dict(
    head={"tiny": 5, "small": 32, "full": 128}[size],
    heads={"tiny": 3, "small": None, "full": 32}[size],
  )
  c.model.mixers.mla = dict(
    head={"tiny": 6, "small": 32, "full": 128}[size],
    heads={"tiny": None, "small": None, "full": 32}[size],
    rank={"tiny": 7, "small": 64, "full": 512}[size],
    rotary={"tiny": 4, "small": 16, "full": 64}[size],
    base=None,
    std=0.02,
  )
  c.model.channels.experts = dict(
    experts={"tiny": 5, "small": 16, "full": 256}[size],
    top={"tiny": 2, "small": 2, "full": 8}[size],
    width={"tiny": 7, "small": 112, "full": 1024}[size],
    shared={"tiny": 5, "small": 112, "full": 1024}[size],
    scale=2.446,
  )
  c.match.size = "model.channels.experts.width"
  if size == "tiny":
    c.model.depth = 4
  if size == "full":  # Kimi-Linear-48B-A3B
    c.model.dim, c.model.depth = 2304, 27
    first = "kda+swiglu"
    rest = ("kda", "kda", "mla") + ("kda", "kda", "kda", "mla") * 5
    c.model.pattern = (first, *rest, "kda", "kda", "mla")
    c.model.channels.swiglu = dict(width=9216)
    c.model.vocab = dict(name="full", size=163_840, tied=False)
    c.published = 49_122_675_072
  return c.lock()
