"""Scores a model: fixed windows with a fresh state, or a whole split with the
state carried on.

Bits per byte is the sum of -log2 p over all targets, divided by the bytes of
the raw text that they spell.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from arch import arrays, rows
from train import data as data_lib
from train import hosts, models, progress
from train.hosts import Sharding
from train.sharding import apart

AHEAD = 4  # calls that are on their way while an answer is read
# lanes by default, or one a device where there are more: a core of a CPU reads
# several texts at once no faster than one by one
MOST = {"cpu": 1, "gpu": 32, "tpu": 32}
STATES = 1 << 30  # bytes of lanes' states on a device, by default


@dataclasses.dataclass(frozen=True)
class Score:
  """Sums over the scored positions.

  Attributes:
    nats: sum of -log p.
    correct: how many targets were the likeliest symbol.
    positions: how many targets there were.
    bytes: how many bytes of raw text they spell; 0 for a task.
  """

  nats: float
  correct: float
  positions: float
  bytes: int

  @property
  def bits_per_byte(self) -> float:
    return self.nats / math.log(2) / self.bytes

  @property
  def metrics(self) -> dict[str, float]:
    """What a log line says: nats a target, and the score itself."""
    nats = self.nats / self.positions
    if self.bytes:
      return {"nats": nats, "bits_per_byte": self.bits_per_byte}
    return {"nats": nats, "accuracy": self.correct / self.positions}

  def __str__(self):
    return ", ".join(f"{k} {v:.4f}" for k, v in self.metrics.items())


def sums(model, batch, state=None):
  """Nats, hits and weight of each row, B 3, and the state after the batch."""
  nats, right, state = model.score(
    batch["tokens"], batch["targets"], batch["reset"], state
  )
  w = batch["weights"]
  return jnp.stack([jnp.sum(x, 1) for x in (nats * w, right * w, w)], 1), state


def total(answers: Iterable) -> np.ndarray | float:
  """The sum over rows and calls, ... B 3 -> ... 3; 0 of no calls.

  On the host in float64: a long split outgrows float32.
  """
  return sum(np.sum(np.asarray(a, np.float64), -2) for a in answers)


def behind(answers: Iterable) -> Iterator:
  """The answers, each read once AHEAD more were asked for: the devices need not
  wait for that, and no more than these calls are kept for them."""
  waiting = collections.deque()
  for answer in answers:
    answer.copy_to_host_async()
    waiting.append(answer)
    if len(waiting) > AHEAD:
      yield hosts.fetch(waiting.popleft())
  yield from map(hosts.fetch, waiting)


class Scorer:
  """Scores a training state, or each replicate of one, compiled once."""

  def __init__(self, model):
    self.model = model
    one = jax.vmap(self._sums, in_axes=(0, 0, None))
    self._compiled = {0: jax.jit(self._sums), 1: jax.jit(one)}

  def _sums(self, params, buffers, batch):
    model = arrays.fill(self.model, params, buffers)
    return sums(model, batch)[0]

  def __call__(self, state, batches, size: int, last=False) -> list[Score]:
    """One Score a replicate (one in all without replicates).

    Args:
      state: a training state; its params and buffers are read, or its averaged
        params, where it has some, unless `last`.
      batches: dicts of tokens, targets, weights, reset, each B T.
      size: bytes of raw text that the batches spell; 0 for a task.
    """
    R, averaged = state["step"].shape, "ema" in state and not last
    params = state["ema" if averaged else "params"]
    score, sharding = self._compiled[len(R)], Sharding.of(state)

    def answer(batch):
      batch = sharding.batch(batch, *R)
      with apart(batch):
        return score(params, state["buffers"], batch)

    sums = total(behind(map(answer, batches)))
    return [Score(*row, size) for row in np.atleast_2d(sums).tolist()]


class Lanes:
  """Scores texts side by side, each from the state that its last call left;
  with learned positions from a fresh one in every call.

  Args:
    context: how many tokens back attention looks; the config's by default.
  """

  def __init__(self, model, context: int | None = None):
    self._graph, self._weights = arrays.split(model)
    self._context, self._alone = context, model.limit is not None

  def counts(self, most: int | None = None) -> list[int]:
    """How many lanes there may be, the most first: equally many on each device,
    or one on some.

    Args:
      most: by default MOST, or as many as STATES holds.
    """
    G = len(jax.devices())
    if most is None:
      state = jax.tree.leaves(self._shapes(1))
      size = sum(x.size * x.dtype.itemsize for x in state)
      fit = G * STATES // max(1, size)
      most = max(G, min(MOST[jax.default_backend()], fit))
    return [n for n in range(most, 0, -1) if n % G == 0 or n < G]

  def __call__(self, batches: Iterable, B: int) -> Iterator:
    """`sums` of each batch of B lanes, which may not be there yet."""
    sharding = Sharding.fitting(1, B)
    weights, state, call = self.start(sharding.mesh, B)
    for batch in batches:
      batch = sharding.batch(batch)
      with apart(batch):
        found, new = call(weights, state, batch)
      state = state if self._alone else new
      yield found

  def start(self, mesh, B: int):
    """Weights, a fresh state, and (weights, state, batch) -> `sums`."""
    whole, lanes = (NamedSharding(mesh, spec) for spec in (P(), P(rows.AXIS)))
    places = self.places(mesh)
    weights = jax.device_put(self._weights, whole)
    fresh = jax.jit(self._fresh, static_argnums=1, out_shardings=places)
    call = jax.jit(
      self._sums,
      donate_argnums=() if self._alone else (1,),
      out_shardings=(lanes, places),
    )
    return weights, fresh(weights, B), call

  def places(self, mesh):
    """Where each leaf of a state is: every lane's on the lane's device."""

    def place(one, two):
      axes = zip(one.shape, two.shape, strict=True)
      own = (rows.AXIS if a != b else None for a, b in axes)
      return NamedSharding(mesh, P(*own))

    return jax.tree.map(place, self._shapes(1), self._shapes(2))

  def _sums(self, weights, state, batch):
    return sums(arrays.join(self._graph, weights), batch, state)

  def _fresh(self, weights, B: int):
    return arrays.join(self._graph, weights).init_state(B, self._context)

  def _shapes(self, B: int):
    return jax.eval_shape(lambda w: self._fresh(w, B), self._weights)


def whole(
  run,
  *,
  data: str | None = None,
  split: str = "test",
  context: int | None = None,
  chunk: int = 1024,
  lanes: int | None = None,
  which: str = "best",
) -> tuple[Score, data_lib.Text, int | None, int]:
  """Scores a whole split, each byte once and as in one stream.

  Recurrences carry their state from call to call, attention its ring; a reset
  at each document's first token forgets both. So runs of documents are scored
  side by side, in lanes, as one after another; a document is never cut. A model
  with learned positions has no more than those: it is scored in windows, each
  with a fresh state.

  Args:
    run: a trained run's workdir, or an artefact.
    data: what train.data.load knows; the run's own by default.
    context: how many tokens back attention looks; the config's by default.
    chunk: tokens of a lane a call.
    lanes: how many at most; by default what Lanes.counts says.

  Returns:
    The score, the data that it is of, the tokens of a window, or None, and how
    many lanes there were.
  """
  counts = {"context": context, "chunk": chunk, "lanes": lanes}
  for name, value in counts.items():
    if value is not None and value < 1:
      raise ValueError(f"--{name}={value} must be at least 1")
  cfg, tokens, model = models.trained(run, which)
  named = {**cfg["data"], "name": data or cfg["data"]["name"]}
  text = data_lib.load(named, tokens=tokens)
  if text.is_task:
    raise ValueError(f"{text.name} is a task: a stream needs text")
  window, scorer = model.limit, Lanes(model, context)
  parts, lanes = text.lanes(
    split, window or chunk, scorer.counts(lanes), windows=window is not None
  )
  found = progress.bar(
    behind(scorer(parts, lanes)),
    f"{text.name} {split}",
    total=len(parts),
    unit="chunk",
  )
  return Score(*total(found).tolist(), parts.bytes), text, window, lanes
