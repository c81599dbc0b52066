"""Chunks that begin where words end: at bytes that are no letter, digit or
continuation of a UTF-8 symbol, after one that is, and at a document's start.

  x_t <- x_t + y_t where t opens a chunk

SpaceByte, Slagle 2024, https://arxiv.org/abs/2404.14408, sec. 3: the rule, and
that the wide blocks see and add to these positions alone. Its narrow stream is
padded with zeros in front; here by a learnt vector behind, 0 at the start. A
byte is wanted by what it is, so that the chunk that predicts what comes after a
space has the space.

B batch  T time  D width  S slots
"""

import dataclasses

import jax.numpy as jnp

from arch import body
from arch.law import Aux


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(body.Config):
  """Raises ValueError for symbols that are no bytes, too."""

  size: int = 256

  def __post_init__(self):
    super().__post_init__()
    if self.size != 256:
      raise ValueError(
        f"{self.where}: it looks at bytes, and the vocabulary has {self.size} "
        "symbols: use data.tokenizer=bytes, or body=hnet"
      )


def between(tokens):
  """Whether a byte, or the start symbol 256, is none of a word's."""
  letters = [(0x30, 0x39), (0x41, 0x5A), (0x61, 0x7A), (0x80, 0xBF)]
  inside = [(low <= tokens) & (tokens <= high) for low, high in letters]
  return ~(inside[0] | inside[1] | inside[2] | inside[3])


class Body(body.Chunked):
  def init_own(self, batch):
    return {"between": jnp.zeros(batch, bool)}

  def want(self, x, tokens, reset, state):
    if tokens is None:
      raise ValueError(f"{self.cfg.where}: needs the tokens, not x alone")
    now = between(tokens)
    before = jnp.concatenate([state["between"][:, None], now[:, :-1]], 1)
    want = (now & ~before) | (tokens == 256)
    return want, None, {"between": now[:, -1]}

  def read(self, x, y, found, told, state):
    newest = jnp.maximum(found.count - 1, 0)
    y = body.pick(y, jnp.minimum(newest, y.shape[1] - 1))
    return x + jnp.where(found.open[..., None], y, 0), state, Aux()
