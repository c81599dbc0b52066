"""RWKV-7: its token mixing, its channel mixing, LayerNorm."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  if size == "full":  # RWKV7-World3-0.1B
    c.model.vocab = dict(name="full", size=65_536, tied=False)
    c.published = 191_034_624
  first = dict(mixer="rwkv7", residual=False)
  c.model.pattern = (first, *["rwkv7"] * (c.model.depth - 1))
  c.model.mixers.rwkv7 = dict(head={"tiny": 6, "small": 32, "full": 64}[size])
  if size == "tiny":
    c.model.mixers.rwkv7.update(
      decay_rank=5, rate_rank=3, value_rank=2, gate_rank=7
    )
  c.model.norm, c.model.norm_eps, c.model.embed_norm = "layer", 1e-5, True
  c.model.channel = "rwkv"
  c.model.channels.rwkv = dict(
    width={"tiny": 29, "small": 512, "full": 3072}[size]
  )
  c.match.size = "model.channels.rwkv.width"
  return c.lock()
