"""Scores a model: fixed windows with a fresh state, or a whole split with the
state carried on.

Bits per byte is the sum of -log2 p over all targets, divided by the bytes of
the raw text that they spell.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from arch import arrays
from train import data as data_lib
from train import hosts, models, progress
from train.hosts import Sharding
from train.sharding import apart


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
  """Nats, hits and weight of a batch, 3, and the state after it."""
  nats, right, state = model.score(
    batch["tokens"], batch["targets"], batch["reset"], state
  )
  w = batch["weights"]
  return jnp.stack([jnp.sum(nats * w), jnp.sum(right * w), jnp.sum(w)]), state


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
    # summed on the host in float64: a long split outgrows float32
    sums = 0.0
    for batch in batches:
      batch = sharding.batch(batch, *R)
      with apart(batch):
        part = score(params, state["buffers"], batch)
      sums = sums + np.asarray(hosts.fetch(part), np.float64)
    return [Score(*row, size) for row in np.atleast_2d(sums).tolist()]


def whole(
  run,
  *,
  data: str | None = None,
  split: str = "test",
  context: int | None = None,
  chunk: int = 1024,
  which: str = "best",
) -> tuple[Score, data_lib.Text, int | None]:
  """Scores a whole split as one stream, each byte once.

  Recurrences carry their state from call to call, attention its ring; a reset
  at each document's first token forgets both. A model with learned positions
  has no more than those: it is scored in windows, each with a fresh state.

  Args:
    run: a trained run's workdir, or an artefact.
    data: what train.data.load knows; the run's own by default.
    context: how many tokens back attention looks; the config's by default.
    chunk: tokens a call.

  Returns:
    The score, the data that it is of, and the tokens of a window, or None.
  """
  for name, value in (("context", context), ("chunk", chunk)):
    if value is not None and value < 1:
      raise ValueError(f"--{name}={value} must be at least 1")
  cfg, tokens, model = models.trained(run, which)
  named = {**cfg["data"], "name": data or cfg["data"]["name"]}
  text = data_lib.load(named, tokens=tokens)
  if text.is_task:
    raise ValueError(f"{text.name} is a task: a stream needs text")
  graph, weights = arrays.split(model)

  @functools.partial(jax.jit, donate_argnums=1)
  def add(weights, state, batch):
    return sums(arrays.join(graph, weights), batch, state)

  window = model.limit
  state, total = None, np.zeros(3)
  parts = text.windows(split, window or chunk, batch=1)
  for part in progress.bar(parts, f"{text.name} {split}", unit="chunk"):
    if window or state is None:
      state = arrays.init_state(graph, weights, 1, context)
    found, state = add(weights, state, part)
    total += np.asarray(found, np.float64)
  return Score(*total.tolist(), parts.bytes), text, window
