"""minGRU: a GRU whose gate and candidate see the input alone.

  z = sigmoid(x W_z),  v = g(x W_v)
  g(u) = u + 1/2 where u >= 0, sigmoid(u) where u < 0
  h_t = (1 - z_t) h_{t-1} + z_t v_t                        h_0 = 0
  y = h W_out, or h itself where expand is 1

Feng et al. 2024, https://arxiv.org/abs/2410.01201, section 3.1, with the g of
the log-space version in its appendix B, whose values these are: v and h are
positive, but no logarithm is needed to scan them. Without biases, with W_out
and with the start of torch.nn.Linear as in lucidrains/minGRU-pytorch,
minGRU.py, whose language model has expand 1.5; not held against the authors'
own code.

B batch  T time  D width  E inner width
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from arch import config, starts
from arch.law import Aux
from arch.recurrence import diagonal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
  """
  Attributes:
    expand: E over dim, E being rounded down; 1 has no projection back.
  """

  expand: float = 1.5

  def __post_init__(self):
    if self.expand < 1:
      raise ValueError(f"{self.where}: expand={self.expand} must be at least 1")

  @property
  def E(self):
    """inner width"""
    return int(self.expand * self.dim)


def g(u):
  return jnp.where(u >= 0, u + 0.5, jax.nn.sigmoid(u))


class Mixer(nnx.Module):
  gates = ("z_proj",)

  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D, E = cfg.dim, cfg.E
    kw = dict(init=starts.uniform_fan_in(), rngs=rngs)
    for name in (*self.gates, "v_proj"):
      setattr(self, name, cfg.linear(D, E, **kw))
    self.out_proj = cfg.linear(E, D, **kw) if cfg.expand != 1 else None

  def init_state(self, batch, length=None):
    return {"h": jnp.zeros((batch, self.cfg.E))}

  def __call__(self, x, reset, state):
    state = state or self.init_state(x.shape[0])
    gates = (getattr(self, name)(x).astype(jnp.float32) for name in self.gates)
    z = self.balance(*gates)
    v = self.v_proj(x).astype(jnp.float32)
    # sigmoid(-z) is 1 - sigmoid(z), exact also where the gate is nearly open
    b = jax.nn.sigmoid(z) * g(v)
    h, last = diagonal.scan(jax.nn.sigmoid(-z), b, reset, state["h"])
    y = h.astype(self.cfg.compute)
    return y if self.out_proj is None else self.out_proj(y), {"h": last}, Aux()

  @staticmethod
  def balance(z):
    """The log odds of writing over keeping."""
    return z
