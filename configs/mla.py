"""Multi-head latent attention; `full` has DeepSeek-V2-Lite's experts."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.pattern = ("mla",)
  c.model.mixers.mla = dict(
    head={"tiny": 6, "small": 32, "full": 128}[size],
    value={"tiny": 5, "small": 32, "full": 128}[size],
    rank={"tiny": 7, "small": 64, "full": 512}[size],
    query_rank={"tiny": 11, "small": None, "full": None}[size],
    rotary={"tiny": 4, "small": 16, "full": 64}[size],
  )
  c.model.channels.swiglu = dict(
    width={"tiny": 29, "small": 344, "full": 10_944}[size]
  )
  if size == "full":  # DeepSeek-V2-Lite
    c.model.dim, c.model.depth = 2048, 27
    c.model.pattern = ("mla",) + ("mla+experts",) * 26
    c.model.channels.experts = dict(
      experts=64,
      top=6,
      width=1408,
      shared=2816,
      score="softmax",
      normalised=False,
    )
    c.model.vocab = dict(name="full", size=102_400, tied=False)
    c.published = 15_706_484_224
  return c.lock()
