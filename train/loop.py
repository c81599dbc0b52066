"""Trains one run in a workdir, from its start or from where it stopped.

A run is a config, data and one or more replicates (seed, peak rate). Its step,
its place in the data and its clock are saved together; nothing else is needed
to go on, and a run that was killed ends with the numbers of one that was not.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from arch import arrays
from train import checkpoint, progress, tokenizer
from train import metrics as metrics_lib
from train.evaluate import Score, Scorer
from train.metrics import Metrics
from train.sharding import Sharding
from train.signals import Signals
from train.step import Step
from train.workdir import Workdir

# which fields must be what
RULES = (
  (
    "train.steps train.batch train.length train.accumulate train.log_every "
    "train.eval_every train.eval_bytes train.save_every train.keep "
    "train.model_devices",
    "at least 1",
    lambda x: x >= 1,
  ),
  (
    "train.lr train.epsilon model.norm_eps",
    "positive and finite",
    lambda x: 0 < x < math.inf,
  ),
  (
    "train.clip train.decay train.warmup model.positions",
    "0 or a number above",
    lambda x: 0 <= x < math.inf,
  ),
  (
    "train.beta1 train.beta2 train.momentum model.dropout",
    "at least 0 and below 1",
    lambda x: 0 <= x < 1,
  ),
  ("train.final train.cooldown", "from 0 to 1", lambda x: 0 <= x <= 1),
  ("train.seed", "from 0 to 2**32 - 1", lambda x: 0 <= x < 2**32),
)


class Diverged(ValueError):
  """The loss or a gradient of a run was not finite."""


@dataclasses.dataclass
class Result:
  """Where a run stands.

  Attributes:
    state: the training state, with its replicates.
    step: how many steps it has made.
    done: whether these are all of its steps.
    scores: the last evaluation, one Score a replicate; [] before the first.
    seconds: time spent in training steps after the first, which compiles.
    compile_seconds: the first step's, 0 where the step was compiled before.
    curve: one line of metrics.jsonl after another.
    stopped: the name of the signal that asked to stop, or "".
  """

  state: dict
  step: int
  done: bool
  scores: list[Score]
  seconds: float
  compile_seconds: float
  curve: list[dict]
  stopped: str = ""

  @property
  def alive(self) -> list[bool]:
    return jnp.atleast_1d(self.state["alive"]).tolist()


def resolve(cfg, data) -> ml_collections.ConfigDict:
  """cfg with the data's number of symbols.

  Raises:
    ValueError: it has another, or fields that no run can have.
  """
  cfg = cfg.copy_and_resolve_references()
  t = cfg.train
  for names, words, holds in RULES:
    for name in names.split():
      part, _, field = name.partition(".")
      if not holds(cfg[part][field]):
        raise ValueError(f"{name}={cfg[part][field]} must be {words}")
  if t.batch % t.accumulate:
    raise ValueError(
      f"train.accumulate={t.accumulate} must divide train.batch={t.batch}"
    )
  if data.is_task and t.length != data.length:
    raise ValueError(
      f"{data.name} makes sequences of {data.length}, and train.length is "
      f"{t.length}: give --length={data.length} to launch.compare, "
      f"--config.train.length={data.length} to launch.train"
    )
  given = cfg.model.vocab.size
  if given not in (0, data.vocab):
    raise ValueError(
      f"model.vocab.size={given}, but {data.name} has {data.vocab} symbols: "
      "leave it at 0, the data's own"
    )
  with cfg.unlocked():
    cfg.model.vocab.size = data.vocab
  return cfg


class Clock:
  """Adds up the seconds of training, without the compiler's or evaluation's."""

  def __init__(self, seconds: float):
    self.seconds, self.since = seconds, None

  def start(self):
    if self.since is None:
      self.since = time.perf_counter()

  def stop(self):
    if self.since is not None:
      self.seconds += time.perf_counter() - self.since
      self.since = None

  def read(self):
    running = 0 if self.since is None else time.perf_counter() - self.since
    return self.seconds + running


def batches(cfg, data, seed):
  """step -> batch, and Grain's iterator (None for a task).

  seed may be a tuple: batches then have a leading axis of replicates, unless
  all its seeds are one.
  """
  B, T = cfg.train.batch, cfg.train.length
  if isinstance(seed, tuple) and len(set(seed)) == 1:
    seed = seed[0]
  if not data.is_task:
    iterator = data.train(batch=B, length=T, seed=seed)
    return (lambda step: next(iterator)), iterator

  def make(seed, step):
    return data.batch(seed, step, B, T)

  each = jax.jit(jax.vmap(make, (0, None)) if isinstance(seed, tuple) else make)
  return (lambda step: each(jnp.uint32(seed), jnp.uint32(step))), None


def taken(path, state, data) -> dict:
  """The params and buffers of another run, in place of a fresh state's.

  Raises:
    ValueError: its model or its tokeniser is another.
  """
  if not data.is_task:
    own, here = (
      (type(t), t.vocab, getattr(t, "hash", ""))
      for t in (tokenizer.of_run(path), data.tokenizer)
    )
    if own != here:
      raise ValueError(
        f"--init={path} was trained on symbols of another tokeniser than "
        f"{data.name} has here"
      )
  found = arrays.pure(checkpoint.load_model(path))
  found = dict(zip(("params", "buffers"), found, strict=True))
  saved = checkpoint.shapes(found)
  fresh = checkpoint.shapes({k: state[k] for k in found})
  other = [k for k in saved | fresh if saved.get(k) != fresh.get(k)]
  if other:
    k = other[0]
    raise ValueError(
      f"--init={path} has another model: {len(other)} of its arrays differ, "
      f"such as {k}: {saved.get(k)} there, {fresh.get(k)} here"
    )
  return found


def run(
  cfg,
  path,
  data,
  *,
  step: Step | None = None,
  scorer: Scorer | None = None,
  replicates: Sequence[tuple[int, float]] | None = None,
  label: str = "",
  signals: Signals | None = None,
  init: str | None = None,
) -> Result:
  """Trains until cfg.train.steps, or until a signal asks to stop.

  Args:
    cfg: a config, as `resolve` returns it.
    path: the workdir, created or gone on with.
    data: what train.data.load returned.
    step, scorer: those of the same config but for seed and rate, so that
      several runs compile once.
    replicates: seeds and peak rates to train at once, on a leading axis of
      the state; None for the config's own, without that axis.
    label: what the progress bar says first.
    signals: entered already by a caller that runs several.
    init: a workdir whose parameters it starts with, in place of fresh ones.

  Raises:
    Diverged: a run without replicates met a loss that is not finite. The
      newest checkpoint is of before that.
  """
  t = cfg.train
  step = step or Step(cfg)
  if replicates is None:
    seed, lr = t.seed, t.lr
  else:
    seed, lr = (tuple(column) for column in zip(*replicates, strict=True))

  with contextlib.ExitStack() as stack:
    folder = stack.enter_context(Workdir(path))
    if signals is None:
      signals = stack.enter_context(Signals())
    next_batch, iterator = batches(cfg, data, seed)
    sharding = Sharding.fitting(
      t.model_devices, t.batch // t.accumulate, len(replicates or ())
    )
    scorer = scorer or Scorer(step.model)
    windows = data.windows("valid", length=t.length, size=t.eval_bytes)
    checkpoints = stack.enter_context(
      checkpoint.Checkpoints(
        folder,
        t.keep,
        metric=data.metric,
        better=data.better,
      )
    )
    # nothing refuses this config any more: now the folder is its
    folder.record(cfg, None if data.is_task else data.hash, init)
    if not data.is_task:
      data.tokenizer.save(Path(path) / tokenizer.FILE)
    state = sharding.state(step.init(seed, lr), step.layers)
    restored = checkpoints.restore(state, iterator)
    start = 0
    if restored is not None:
      state, start = restored
    elif init is not None:
      state = sharding.state(state | taken(init, state, data), step.layers)
    log = Metrics(folder, None if restored is None else start)
    stack.callback(log.close)
    curve = metrics_lib.read(folder)
    clock = Clock(next((c["seconds"] for c in curve[::-1]), 0.0))
    scores = []
    tokens = t.batch * t.length
    first = step.train._cache_size() == 0 and start < t.steps
    bar = stack.enter_context(
      progress.bar(
        total=t.steps * tokens,
        initial=start * tokens,
        desc=label or Path(path).name[:24],
        unit="tok",
        unit_scale=True,
        postfix="compiling" if first else "",
      )
    )

    def record(n, found, saved=False):
      """Logs step n, whose metrics are done or nearly so; always where it is
      saved, since a resumed run's clock is that of the last line."""
      found = jax.device_get(found)
      alive = np.atleast_1d(found.pop("alive"))
      values = {k: v.tolist() for k, v in found.items()}
      bar.update(tokens)
      bar.set_postfix_str(f"loss {np.mean(found['loss']):.3f}", refresh=False)
      if not alive.any():
        checkpoints.wait()
        newest = checkpoints.latest()
        raise Diverged(
          f"step {n}: the loss is {values['loss']}, with a gradient norm of "
          f"{values['grad_norm']}; "
          + (
            "nothing was saved yet"
            if newest is None
            else f"the newest checkpoint is of step {newest}"
          )
          + f". Try a lower train.lr than {lr}"
        )
      if saved or n % t.log_every == 0 or n == t.steps:
        add(n, **values)

    def add(n, **values):
      lists = {k: v for k, v in values.items() if isinstance(v, list)}
      one = {k: v for k, v in values.items() if not isinstance(v, list)}
      for k, several in lists.items():
        one |= {f"{k}_{i}": v for i, v in enumerate(several)}
      line = {"step": n, "tokens": n * tokens, "seconds": clock.read(), **one}
      log.write(**line)
      curve.append(line)

    def evaluate(n):
      nonlocal scores
      bar.set_postfix_str("scoring")
      scores = scorer(state, windows, windows.bytes)
      found = [s.metrics for s in scores]
      bar.set_postfix_str(f"valid {found[0][data.metric]:.4f}", refresh=False)
      if replicates is None:
        add(
          n,
          **{
            f"valid_{k}" if k == "nats" else k: v for k, v in found[0].items()
          },
        )
      else:
        add(n, **{k: [f[k] for f in found] for k in found[0]})
      return {data.metric: found[0][data.metric]}

    compile_seconds, behind = 0.0, None
    n = start
    while n < t.steps and not signals.name:
      batch = sharding.batch(next_batch(n), len(replicates or ()))
      if n == start:
        before = time.perf_counter()
        cached = step.train._cache_size()
      state, ahead = step.train(state, batch)
      n += 1
      if n == start + 1:
        jax.block_until_ready(state)
        if step.train._cache_size() > cached:
          compile_seconds = time.perf_counter() - before
        clock.start()
      if behind is not None:
        record(n - 1, behind)
      behind = ahead
      looks = n % t.eval_every == 0 or n == t.steps
      saves = looks or n % t.save_every == 0 or signals.name
      if looks or saves:
        record(n, behind, saved=True)
        behind = None
        clock.stop()
        best = evaluate(n) if looks else None
        checkpoints.save(n, state, iterator, best)
        clock.start()
    if behind is not None:
      record(n, behind, saved=True)
      checkpoints.save(n, state, iterator)
    clock.stop()
    checkpoints.wait()
    if not scores and n >= t.steps:
      scores = scorer(state, windows, windows.bytes)
    return Result(
      state,
      n,
      n >= t.steps,
      scores,
      clock.seconds,
      compile_seconds,
      curve,
      "" if n >= t.steps else signals.name,
    )
