"""Rows of a symbol, and of the n-grams that end at it, by a hash.

  embed(t) = E_t + sum_{n = 2..N} B_n[h_n(t_{-n+1}, ..., t)] (W_n)
  h_n = mix(g_n) mod m,  g_1 = t,  g_n = mix(g_{n-1}) + t_{-n+1}

The bigrams of modded-nanogpt, of higher order as in Huang et al. 2025,
https://arxiv.org/abs/2501.16975, sec. 3.1. B starts at 0. Before a document's
first symbol stands the start symbol. The state holds the last N - 1 symbols.

B batch  T time  D width  N order  m buckets  W width of a bucket
"""

import dataclasses

import jax.numpy as jnp

from arch import vocab
from arch.roles import Embedding, Matrix
from arch.starts import fan_in
from arch.vocab import full


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(full.Config):
  """Raises ValueError for an order below 2, no bucket, or a width below 1.

  Attributes:
    order: N.
    buckets: m of each order; None for five times the symbols, nanochat's.
    width: W; None for D, and no W_n.
  """

  order: int = 2
  buckets: int | None = None
  width: int | None = None

  def __post_init__(self):
    super().__post_init__()
    self.at_least(order=2, buckets=1, width=1)

  @property
  def m(self) -> int:
    """buckets"""
    return self.buckets or 5 * self.size


class Table(full.Table):
  def __init__(self, cfg, *, rngs):
    super().__init__(cfg, rngs=rngs)
    W = cfg.width or cfg.dim
    for n in range(2, cfg.order + 1):
      setattr(self, f"grams_{n}", Embedding(jnp.zeros((cfg.m, W))))
      if cfg.width:
        widen = fan_in()(rngs.params(), (W, cfg.dim))
        setattr(self, f"widen_{n}", Matrix(widen))

  def init_state(self, batch):
    last = jnp.full((batch, self.cfg.order - 1), self.cfg.size, jnp.int32)
    return {"last": last}

  def __call__(self, tokens, reset, state):
    cfg = self.cfg
    x, _ = super().__call__(tokens, reset, state)
    last = (state or self.init_state(len(tokens)))["last"]
    before, key = [tokens], tokens.astype(jnp.uint32)
    for n in range(2, cfg.order + 1):
      now = jnp.concatenate([last[:, -1:], before[-1][:, :-1]], 1)
      last = last[:, :-1]
      if reset is not None:
        now = jnp.where(reset, cfg.size, now)
      before.append(now)
      key = vocab.mixed(key) + now.astype(jnp.uint32)
      rows = getattr(self, f"grams_{n}")[...]
      rows = jnp.take(
        rows, (vocab.mixed(key) % cfg.m).astype(jnp.int32), axis=0
      )
      rows = rows.astype(cfg.dtype)
      if cfg.width:
        rows = rows @ getattr(self, f"widen_{n}")[...].astype(cfg.dtype)
      x += rows
    kept = [b[:, -1] for b in before[-2::-1]]
    return x, {"last": jnp.stack(kept, 1)}
