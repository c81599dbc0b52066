"""RWKV-6: its token mixing, its channel mixing of 3.5 dim, LayerNorm."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.pattern = ("rwkv6",)
  c.model.norm, c.model.norm_eps, c.model.embed_norm = "layer", 1e-5, True
  c.model.channel = "rwkv"
  c.model.mixers.rwkv6 = dict(
    head={"tiny": 6, "small": 32, "full": 64}[size],
    mix_rank={"tiny": 5, "small": 16, "full": 32}[size],
    decay_rank={"tiny": 7, "small": 16, "full": 64}[size],
  )
  c.model.channels.rwkv = dict(
    width={"tiny": 37, "small": 448, "full": 2688}[size], receptance=True
  )
  c.match.size = "model.channels.rwkv.width"
  return c.lock()
