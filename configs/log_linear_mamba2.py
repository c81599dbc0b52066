"""Log-linear Mamba-2 with SwiGLU; full as in its authors' config."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)
  c.model.pattern = ("log_linear_mamba2",)
  c.model.mixers.log_linear_mamba2 = dict(
    state={"tiny": 5, "small": 64, "full": 128}[size],
    head={"tiny": 6, "small": 32, "full": 64}[size],
  )
  c.model.channels.swiglu = dict(
    width={"tiny": 29, "small": 344, "full": 4096}[size]
  )
  if size == "tiny":  # several chunks, and more tokens than its levels count
    c.model.mixers.log_linear_mamba2.update(chunk=4, levels=4, groups=2)
  if size == "full":
    c.model.dim, c.model.depth = 1536, 21
    c.model.mixers.log_linear_mamba2.levels = 15
    c.model.vocab.size = 32_000
  return c.lock()
