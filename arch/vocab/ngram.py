"""Rows of a symbol, and of the n-grams that end at it, by a hash.

  embed(t) = E_t + sum_{n = 2..N} B_n[h_n(t_{-n+1}, ..., t)] (W_n)
  h_n = mix(g_n) mod m,  g_1 = t,  g_n = mix(g_{n-1}) + t_{-n+1}

The bigrams of modded-nanogpt, of higher order as in Huang et al. 2025,
https://arxiv.org/abs/2501.16975, sec. 3.1. B starts at 0. A document begins
after start symbols. The state holds the last N - 1 symbols.

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
  """Raises ValueError for an order below 2, no bucket, a width below 1.

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


class Table(full.Table):
  def __init__(self, cfg, *, rngs):
    super().__init__(cfg, rngs=rngs)
    m, W, D = cfg.buckets or 5 * cfg.size, cfg.width, cfg.dim
    for n in range(2, cfg.order + 1):
      setattr(self, f"grams_{n}", Embedding(jnp.zeros((m, W or D))))
      if W:
        setattr(self, f"widen_{n}", Matrix(fan_in()(rngs.params(), (W, D))))

  def init_state(self, batch):
    shape = batch, self.cfg.order - 1
    return {"last": jnp.full(shape, self.cfg.size, jnp.int32)}

  def __call__(self, tokens, reset, state):
    cfg, before, key = self.cfg, [tokens], tokens.astype(jnp.uint32)
    x, _ = super().__call__(tokens, reset, state)
    last = (state or self.init_state(len(tokens)))["last"]
    for n in range(2, cfg.order + 1):
      now = jnp.concatenate([last[:, 1 - n, None], before[-1][:, :-1]], 1)
      now = now if reset is None else jnp.where(reset, cfg.size, now)
      before.append(now)
      key = vocab.mixed(key) + now.astype(jnp.uint32)
      grams = getattr(self, f"grams_{n}")[...]
      at = (vocab.mixed(key) % len(grams)).astype(jnp.int32)
      rows = jnp.take(grams, at, axis=0).astype(cfg.dtype)
      if cfg.width:
        rows = rows @ getattr(self, f"widen_{n}")[...].astype(cfg.dtype)
      x += rows
    return x, {"last": jnp.stack([b[:, -1] for b in before[-2::-1]], 1)}
