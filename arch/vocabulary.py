"""The ways in and out of a model: a table, learned positions, a readout.

  x = table(tokens) (+ P_t, t the token's place in its document)
  logits = readout(x)

A config's `vocab` names a file of arch/vocab as `name`, or one for each way as
`input` and `output`; its other fields go to the Config that knows them.

B batch  T time  D width  V symbols
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from arch import losses, vocab
from arch.config import closest, configure
from arch.layers import positions
from arch.registry import find, names
from arch.roles import Embedding

WAYS = {"input": "Table", "output": "Readout"}


def files(fields: Mapping) -> dict[str, str]:
  """The file of each way."""
  return {way: fields.get(way) or fields.get("name", "full") for way in WAYS}


def configs(fields: Mapping, **told):
  """The Configs of the table and of the readout.

  Args:
    fields: a config's `vocab`.
    told: dim and dtype of the model.

  Raises:
    ValueError: a file that does not have that way, a field that neither knows,
      or rows that a tied readout cannot read.
  """
  named = files(fields)
  modules = {way: find("vocab", name) for way, name in named.items()}
  for way, kind in WAYS.items():
    if not hasattr(modules[way], kind):
      able = [n for n in names("vocab") if hasattr(find("vocab", n), kind)]
      raise ValueError(
        f"vocabulary {named[way]} has no {way}: {closest(named[way], able)}"
      )
  own = {k: v for k, v in fields.items() if k not in ("name", *WAYS)}
  known = {
    way: set(m.Config.__dataclass_fields__) for way, m in modules.items()
  }
  every = set().union(*known.values()) - set(told)
  for field in own:
    if field not in every:
      where = " and ".join(sorted(set(named.values())))
      raise ValueError(
        f"vocabulary {where} has no field {field!r}: {closest(field, every)}"
      )

  def made(way, **more):
    mine = {k: v for k, v in own.items() if k in known[way]}
    where = f"vocabulary {named[way]}"
    return configure(modules[way].Config, where, **mine | told | more)

  readout = made("output")
  # only the readout can say whether it is tied, which changes a table's start
  return made("input", tied=readout.tied), readout


class Vocab(nnx.Module):
  def __init__(self, cfg, *, rngs):
    table, readout = configs(cfg.vocab, dim=cfg.dim, dtype=cfg.compute)
    named = files(cfg.vocab)
    self.cfg, self.size = readout, readout.size
    self.embedding = find("vocab", named["input"]).Table(table, rngs=rngs)
    self.readout = find("vocab", named["output"]).Readout(readout, rngs=rngs)
    if readout.tied and self.embedding.lends != self.readout.borrows:
      wants, has = self.readout.borrows, self.embedding.lends
      raise ValueError(
        f"{readout.where}: tied=True wants a table with "
        f"{wants or 'something to read, which it cannot'}, and {table.where} "
        f"has {has or 'nothing to lend'}: give tied=False"
      )
    rows = nnx.initializers.normal(0.02)
    self.positions = (
      Embedding(rows(rngs.params(), (cfg.positions, cfg.dim)))
      if cfg.positions
      else None
    )

  @property
  def limit(self) -> int | None:
    """The longest document that it can embed, or None for any."""
    return None if self.positions is None else self.positions.shape[0]

  def init_state(self, batch: int) -> dict:
    state = self.embedding.init_state(batch)
    if self.positions is not None:
      state["position"] = jnp.zeros(batch, jnp.int32)
    return state

  def embed(self, tokens, reset=None, state=None):
    """x B T D in the compute dtype, and the state after the last token.

    NaN for a token that does not exist, and beyond the last position.
    """
    x, new = self.embedding(tokens, reset, state)
    if self.positions is not None:
      at = self._place(*tokens.shape, reset, state)
      x += jnp.take(self.positions[...], at, axis=0).astype(x.dtype)
      new["position"] = at[:, -1] + 1
    return x, new

  def _place(self, B, T, reset, state):
    """Positions B T in their documents.

    Raises:
      ValueError: T tokens have more positions than there are.
    """
    if T > self.limit:
      raise ValueError(
        f"{T} tokens at once, but the model has {self.limit} learned "
        "positions: shorten the context"
      )
    before = jnp.zeros(B, jnp.int32) if state is None else state["position"]
    return positions(reset, before, T)

  @property
  def lent(self):
    """What the readout reads of the table; None if they are apart."""
    return self.embedding.lent() if self.cfg.tied else None

  @property
  def params(self):
    """What the readout's functions read and what learns."""
    return self.readout.params(self.lent)

  @property
  def held(self):
    """Constants that they read."""
    return self.readout.held(self.lent)

  def counted(self, counts) -> dict:
    """New values of buffers that depend on the training text, nested as the
    vocabulary is; see arch/vocab."""
    found = {}
    for way in ("embedding", "readout"):
      rows = getattr(getattr(self, way), "rows", None)
      new = rows.counted(counts) if isinstance(rows, vocab.Rows) else None
      if new:
        found[way] = {"rows": new}
    return found

  @property
  def chunk(self) -> int:
    """How many positions the loss works on at a time."""
    return losses.chunk_size(self.readout.wide)

  def _bound(self, function):
    return functools.partial(function, self.cfg)

  def logits(self, x):
    """B T V in float32."""
    B, T, D = x.shape
    found = self.readout.logits(
      self.cfg, self.params, self.held, x.reshape(B * T, D)
    )
    return found.reshape(B, T, -1)

  def loss(self, x, targets, weights):
    """Mean nats a weighted position; see losses.mean."""
    nats = self._bound(self.readout.nats)
    return losses.mean(
      nats, self.params, self.held, x, targets, weights, self.chunk
    )

  def later(self, x, targets, weights, reset=None):
    """What training adds for the symbols after the next; 0 where the readout
    predicts none.

    The mean over pairs of a position t and a j from 1 to k - 1 for which t + j
    is of t's document, weighted as t + j is.
    """
    k, later = self.readout.horizon, self._bound(self.readout.later)
    if k == 1:
      return jnp.float32(0)
    document = jnp.zeros(targets.shape, jnp.int32)
    if reset is not None:
      document = jnp.cumsum(reset, 1, dtype=jnp.int32)

    def ahead(a, fill=0):
      T = a.shape[1]
      more = jnp.pad(a, ((0, 0), (0, k - 1)), constant_values=fill)
      return jnp.stack([more[:, j : j + T] for j in range(1, k)], -1)

    same = ahead(document, -1) == document[..., None]
    pairs = jnp.where(same, ahead(weights), 0).astype(jnp.float32)
    weights = jnp.sum(pairs, -1)
    tiny = jnp.finfo(jnp.float32).tiny
    shares = pairs / jnp.maximum(weights, tiny)[..., None]

    def nats(params, held, x, given):
      targets, shares = given
      return jnp.sum(shares * later(params, held, x, targets), -1)

    chunk = losses.chunk_size((k - 1) * self.readout.wide)
    given = ahead(targets), shares
    mean = losses.mean(nats, self.params, self.held, x, given, weights, chunk)
    return self.readout.weight * mean

  def apart(self, x, other, other_x, weights, temperature: float):
    """Mean over weighted positions of KL(p || q), p the softmax of the other
    vocabulary's logits over the temperature and q of these, whose gradient is
    x's and that of these params alone.

    Hinton et al. 2015, https://arxiv.org/abs/1503.02531, sec. 2, as a whole
    distribution; both are made a few positions at a time.
    """
    own, theirs = (
      self._bound(self.readout.logits),
      other._bound(other.readout.logits),
    )

    def kl(params, held, x, other_x):
      mine, params_, held_ = held
      p = jax.nn.log_softmax(theirs(params_, held_, other_x) / temperature)
      q = jax.nn.log_softmax(own(params, mine, x) / temperature)
      return jnp.sum(jnp.exp(p) * (p - q), -1)

    held = self.held, other.params, other.held
    held, other_x = jax.lax.stop_gradient((held, other_x))
    chunk = losses.chunk_size(self.readout.wide + other.readout.wide)
    return losses.mean(kl, self.params, held, x, other_x, weights, chunk)

  def score(self, x, targets):
    """nats B T in float32, and whether the likeliest symbol was right, B T."""
    nats, logits = map(self._bound, (self.readout.nats, self.readout.logits))

    def both(params, held, x, targets):
      right = jnp.argmax(logits(params, held, x), -1) == targets
      return nats(params, held, x, targets), right

    return losses.each(both, self.params, self.held, x, targets, self.chunk)
