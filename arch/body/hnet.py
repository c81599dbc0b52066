"""Chunks whose borders are learnt: where neighbours are unlike.

  p_t = (1 - cos(x_{t-1} W_q, x_t W_k)) / 2, 1 at a document's start
  t opens a chunk where p_t > 1/2
  z_j = P_j y_j + (1 - P_j) z_{j-1},  P: p of the chunk's token, not 0 or 1
  x_t <- z_{j(t)} + x_t W,  j(t): the newest chunk, whose gradient also goes to
  c_t, p_t where t opens one and 1 - p_t elsewhere, as to c_t z with c_t = 1
  loss += a N / (N - 1) ((N - 1) F G + (1 - F) (1 - G))
  F: the share of tokens that want a chunk,  G: mean of p

H-Net, Hwang et al. 2025, https://arxiv.org/abs/2507.07955, eq. 4 to 10, with
the queries of the token before as in the authors' code; W_q and W_k start as
the identity, W at 0. The norm at a trunk's end is the model's own here. A
document that cannot pay its first chunk yet reads 0; see arch/body.

B batch  T time  D width  S slots
"""

import dataclasses

import jax
import jax.numpy as jnp

from arch import arrays, body
from arch.body import pick
from arch.law import Aux
from arch.layers import unit
from arch.product import product
from arch.recurrence import diagonal
from arch.roles import Matrix


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(body.Config):
  """Raises ValueError for N of 1 or less, a below 0, too.

  Attributes:
    every: N, tokens a chunk that the loss asks for.
    weight: a.
  """

  every: float = 5.0
  weight: float = 0.03

  def __post_init__(self):
    super().__post_init__()
    self.at_least(weight=0)
    if self.every <= 1:
      raise ValueError(f"{self.where}: every={self.every} must be above 1")


class Body(body.Chunked):
  def __init__(self, cfg, model, *, rngs):
    super().__init__(cfg, model, rngs=rngs)
    self.query, self.key = Matrix(jnp.eye(cfg.dim)), Matrix(jnp.eye(cfg.dim))
    self.skip = Matrix(jnp.zeros((cfg.dim, cfg.dim)))
    arrays.mark((self.query, self.key, self.skip), group="mixer")

  def init_own(self, batch):
    D = self.cfg.dim
    none = jnp.zeros((batch, D))
    return {"before": none, "z": none, "new": jnp.ones(batch, bool)}

  def want(self, x, tokens, reset, state):
    x = x.astype(jnp.float32)
    before = jnp.concatenate([state["before"][:, None], x[:, :-1]], 1)
    q, k = before @ self.query[...], x @ self.key[...]
    p = (1 - jnp.sum(unit(q) * unit(k), -1)) / 2
    starts = jnp.zeros(p.shape, bool) if reset is None else reset
    starts = starts.at[:, 0].set(starts[:, 0] | state["new"])
    p = jnp.where(starts, 1.0, p)
    seen = {"before": x[:, -1], "new": jnp.zeros(len(x), bool)}
    return p > 0.5, p, state | seen

  def read(self, x, y, found, p, state):
    P = jnp.clip(pick(p[..., None], found.at)[..., 0], 1e-4, 1 - 1e-4)
    P = jnp.where(found.first, 1 - 1e-4, jnp.where(found.alive, P, 0.0))
    keep = jnp.where(found.first, 0.0, 1 - P)
    new = P[..., None] * y.astype(jnp.float32)
    keep = jnp.broadcast_to(keep[..., None], new.shape)
    z, last = diagonal.scan(keep, new, state=state["z"])
    newest = pick(jnp.concatenate([state["z"][:, None], z], 1), found.count)
    c = jnp.where(found.open, p, 1 - p)
    c = 1 + c - jax.lax.stop_gradient(c)
    newest = jnp.where(found.known, c, 0.0)[..., None] * newest
    own = product("btd,de->bte", x.astype(jnp.float32), self.skip[...])
    state = state | {"z": last}
    return (newest + own).astype(x.dtype), state, self.asked(p)

  def asked(self, p):
    """That there be N tokens a chunk."""
    N, G = self.cfg.every, jnp.mean(p)
    F = jnp.mean(jnp.where(p > 0.5, 1.0, 0.0))
    loss = N / (N - 1) * ((N - 1) * F * G + (1 - F) * (1 - G))
    return Aux(self.cfg.weight * loss, {"chunk_loss": loss})
