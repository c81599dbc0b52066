"""As many of the experts as a token's router answers above 0.

  y = shared(x) + sum_{e: g_e > 0} g_e expert_e(x),  g = relu(x R)
  loss += l (1 / depth) mean_n sum_e f_e g_ne,  f_e = (E / k) mean_n [g_ne > 0]
  l <- l a^{sign((1 - k / E) - zeros)}           after every training step

ReMoE, Wang et al. 2024, https://arxiv.org/abs/2412.14711, eq. 7 to 12, with
thu-ml/ReMoE's l = 1e-8 at the start and a = 1.2: half of the experts run at
first, and l grows until k of E do. `zeros` is the share of zeros among g; l is
each layer's own here, where the paper's is one for all. A router that is
continuous needs no gradient of a choice, and no token sees another.

Shapes being static, a token has slots for the `most` experts that answer it
highest: with fewer than E the layer is ReMoE once l has grown.

N tokens  E experts  K slots of a token
"""

import dataclasses

import jax
import jax.numpy as jnp

from arch import experts
from arch.law import Aux
from arch.roles import Buffer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(experts.Varying):
  """Raises ValueError for rates below theirs, too.

  Attributes:
    strength: l at the start.
    rate: a.
  """

  strength: float = 1e-8
  rate: float = 1.2

  def __post_init__(self):
    super().__post_init__()
    self.positive("strength")
    self.at_least(rate=1)


class Channel(experts.Channel):
  def __init__(self, cfg, *, layer, rngs):
    super().__init__(cfg, layer=layer, rngs=rngs)
    self.strength = Buffer(jnp.float32(cfg.strength))

  def held(self):
    return ()

  @staticmethod
  def choose(cfg, logits, held):
    g = jax.nn.relu(logits)
    weights, choice = jax.lax.top_k(g, cfg.K)
    above = jnp.mean(jnp.where(g > 0, 1.0, 0.0), 0)
    return choice, weights, {"g": jnp.mean(g, 0), "above": above}

  def learn(self, load, seen):
    cfg, strength = self.cfg, self.strength[...]
    k, E = cfg.top, cfg.experts
    loss = strength / cfg.depth * jnp.sum(E / k * seen["above"] * seen["g"])
    more = jnp.sign((1 - k / E) - (1 - jnp.mean(seen["above"])))
    statistics = experts.statistics(load) | {
      "experts_run": jnp.sum(load),
      "router_strength": strength,
    }
    return Aux(loss, statistics, {"strength": strength * cfg.rate**more})
