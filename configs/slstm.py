"""sLSTM with the gated MLP of its blocks."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.pattern = ("slstm",)
  c.model.channel = "geglu"
  c.model.norm = "layer"
  c.model.norm_eps = 1e-5
  # Adam's first steps from 0 would show rounding, where `tiny` is tested
  c.model.mixers.slstm = dict(
    heads={"tiny": 3, "small": 4, "full": 4}[size],
    recurrent="uniform" if size == "tiny" else "zeros",
  )
  # 4/3 dim in multiples of 64
  c.model.channels.geglu = dict(
    width={"tiny": 29, "small": 192, "full": 1024}[size]
  )
  c.match.size = "model.channels.geglu.width"
  return c.lock()
