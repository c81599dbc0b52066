"""Griffin: two recurrent blocks, then windowed attention."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  if size == "full":  # RecurrentGemma-2B
    c.model.dim, c.model.depth = 2560, 26
    c.model.vocab = dict(
      name="full", size=256_000, tied=True, scale=50.5, softcap=30.0
    )
    c.published = 2_682_862_080
  if size == "tiny":
    c.model.depth = 5
  c.model.pattern = ("rglru", "rglru", "attention")
  c.model.mixers.rglru = dict(blocks={"tiny": 3, "small": 8, "full": 10}[size])
  c.model.mixers.attention = dict(
    head={"tiny": 8, "small": 32, "full": 256}[size],
    kv_heads=1,
    rotary=0.5,
    qk_norm=False,
    out_bias=True,
    window={"tiny": 5, "small": 64, "full": 2048}[size],
  )
  c.model.channel = "geglu"
  c.model.channels.geglu = dict(
    width={"tiny": 29, "small": 344, "full": 7680}[size], bias=True
  )
  c.model.norm = "rms_plus"
  c.match.size = "model.channels.geglu.width"
  return c.lock()
