"""Experts choose tokens, each by a threshold of its own: expert choice that
does not look ahead.

  y = shared(x) + sum_{e: s_e > c_e} s_e expert_e(x),  s = sigmoid(x R)
  c_e <- (1 - u) c_e + u q_e                     after every training step
  q_e: what k / E of the batch's tokens are above, of s_e

Zhou et al. 2022, https://arxiv.org/abs/2202.09368, sec. 3.2, lets an expert
take the most fitting tokens of a sequence, later ones among them, which is no
model of text. The threshold that would have taken as many is causal: expert
threshold routing, https://arxiv.org/abs/2603.11535. An expert runs k / E of the
tokens in the mean, and a token any number of them that it has slots for.

N tokens  E experts  K slots of a token
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from arch import experts
from arch.law import Aux
from arch.roles import Buffer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(experts.Varying):
  """Raises ValueError for a rate not in (0, 1], too.

  Attributes:
    rate: u.
  """

  rate: float = 0.05

  def __post_init__(self):
    super().__post_init__()
    if not 0 < self.rate <= 1:
      raise ValueError(f"{self.where}: rate={self.rate} must be in (0, 1]")


class Channel(experts.Channel):
  def __init__(self, cfg, *, layer, rngs):
    super().__init__(cfg, layer=layer, rngs=rngs)
    # of tokens of unit size, whose logits have a deviation of .5 at the start
    share = 1 - cfg.top / cfg.experts
    start = jax.nn.sigmoid(0.5 * jax.scipy.special.ndtri(share))
    self.threshold = Buffer(jnp.full(cfg.experts, start, jnp.float32))

  def held(self):
    return self.threshold[...]

  @staticmethod
  def choose(cfg, logits, threshold):
    N, E = logits.shape
    s = jax.nn.sigmoid(logits)
    above, choice = jax.lax.top_k(s - threshold[None], cfg.K)
    own = jnp.take_along_axis(s, choice, -1)
    below = math.ceil((1 - cfg.top / E) * N)
    order = jnp.sort(jax.lax.stop_gradient(s), 0)
    q = order[below - 1] if below else jnp.zeros(E)
    return choice, jnp.where(above > 0, own, 0.0), {"q": q}

  def learn(self, load, seen):
    old, u = self.threshold[...], self.cfg.rate
    new = old + u * (seen["q"] - old)
    statistics = experts.statistics(load) | {"experts_run": jnp.sum(load)}
    return Aux(statistics=statistics, next={"threshold": new})
