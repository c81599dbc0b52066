"""Log-linear Gated DeltaNet with SwiGLU; full as in its authors' config."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.pattern = ("log_linear",)
  c.model.mixers.log_linear = dict(
    head={"tiny": 6, "small": 32, "full": 192}[size]
  )
  c.model.channels.swiglu = dict(
    width={"tiny": 29, "small": 344, "full": 4096}[size]
  )
  if size == "tiny":  # several chunks, and more tokens than its levels count
    c.model.mixers.log_linear.update(chunk=4, levels=4)
  if size == "full":
    c.model.dim, c.model.depth = 1536, 21
    c.model.mixers.log_linear.levels = 15
    c.model.vocab.size = 32_000
  return c.lock()
