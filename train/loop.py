"""Trains one run in a workdir, from its start or from where it stopped.

A run is a config, data and one or more replicates (seed, peak rate). Its step,
its place in the data and its clock are saved together; nothing else is needed
to go on, and a run that was killed ends with the numbers of one that was not.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from arch import arrays
from train import (
  checkpoint,
  hosts,
  models,
  platform,
  progress,
  rules,
  tokenizer,
)
from train import metrics as metrics_lib
from train.evaluate import Score, Scorer
from train.hosts import Sharding
from train.metrics import Metrics
from train.signals import Signals
from train.step import Step, overwrite
from train.workdir import Workdir, plain

resolve = rules.resolve
started = False  # whether this process has made a step


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
    return np.atleast_1d(hosts.fetch(self.state["alive"])).tolist()


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
  models.same_symbols(path, data, "--init")
  found = arrays.pure(models.load(path))
  found = dict(zip(("params", "buffers"), found, strict=True))
  if "ema" in state:
    found["ema"] = jax.tree.map(np.array, found["params"])
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
    ValueError: what cannot be trained, another run's folder, or processes that
      were given different configs or data.
  """
  hosts.same("config", f"{plain(cfg)} {replicates} {init}")
  hosts.same("data", data.name if data.is_task else data.hash)
  # what these refuse leaves no folder
  step = step or Step(cfg)
  if data.is_task:  # it has no text to count, which this says where one is read
    step.model.vocab.counted(data.counts)
  if replicates is None:
    seed, lr = cfg.train.seed, cfg.train.lr
  else:
    seed, lr = map(tuple, zip(*replicates, strict=True))
  with contextlib.ExitStack() as stack:
    folder = stack.enter_context(Workdir(path))
    if signals is None:
      signals = stack.enter_context(Signals())
    one = Run(cfg, data, folder, signals, step, scorer, seed, lr)
    one.open(stack, init)
    one.show(stack, label)
    return one.train()


class Run:
  """A run in its locked folder: where it stands, and what a step adds to it.

  Attributes:
    seed, lr: its own, or a tuple of its replicates'.
    n: how many steps it has made.
    state: the training state after them.
    scores: the last evaluation, one Score a replicate; [] before the first.
    curve: one line of metrics.jsonl after another.
    clock: its seconds of training, those of before it was resumed included.
    compile_seconds: the first step's, 0 where the step was compiled before.
  """

  def __init__(self, cfg, data, folder, signals, step, scorer, seed, lr):
    self.cfg, self.data, self.folder = cfg, data, folder
    self.stop, self.step = hosts.Stop(signals), step
    self.seed, self.lr = seed, lr
    t = cfg.train
    self.next_batch, self.iterator = batches(cfg, data, seed)
    self.sharding = Sharding.fitting(
      t.model_devices, t.batch // t.accumulate, self.R
    )
    self.scorer = scorer or Scorer(step.model)
    self.windows = data.windows("valid", length=t.length, size=t.eval_bytes)
    self.scores, self.compile_seconds = [], 0.0

  @property
  def R(self) -> int:
    """How many replicates are trained together; 0 for a run by itself."""
    return len(self.seed) if isinstance(self.seed, tuple) else 0

  @property
  def tokens(self) -> int:
    """How many a step sees."""
    return self.cfg.train.batch * self.cfg.train.length

  @property
  def done(self) -> bool:
    return self.n >= self.cfg.train.steps

  def open(self, stack, init: str | None):
    """Stands where the folder's run stopped, or at its start.

    Args:
      stack: an ExitStack that closes what is opened.
      init: as `run` has it.
    """
    self.checkpoints = stack.enter_context(
      checkpoint.Checkpoints(
        self.folder,
        self.cfg.train.keep,
        metric=self.data.metric,
        better=self.data.better,
      )
    )
    # nothing refuses this config any more: now the folder is its
    hash = None if self.data.is_task else self.data.hash
    self.folder.record(self.cfg, hash, init)
    if not self.data.is_task:
      file = self.folder.path / tokenizer.FILE
      hosts.decided(lambda: self.data.tokenizer.save(file))
    self.state = self.placed(self.step.init(self.seed, self.lr))
    restored = self.checkpoints.restore(self.state, self.iterator)
    self.n = 0
    if restored is not None:
      self.state, self.n = restored
    elif init is not None:
      self.state = self.placed(self.state | taken(init, self.state, self.data))
    else:
      self.state = self.placed(self.state | self.counted())
    self.log = Metrics(self.folder, None if restored is None else self.n)
    stack.callback(self.log.close)
    self.curve = metrics_lib.read(self.folder)
    self.clock = Clock(next((c["seconds"] for c in self.curve[::-1]), 0.0))

  def counted(self) -> dict:
    """The buffers, with what the vocabulary takes from counts of the text."""
    new = self.step.model.vocab.counted(self.data.counts)
    lead = (self.R,) if self.R else ()
    new = jax.tree.map(lambda a: np.broadcast_to(a, (*lead, *a.shape)), new)
    new = {"vocab": new} if new else {}
    return {"buffers": overwrite(self.state["buffers"], new)}

  def placed(self, state):
    return self.sharding.state(state, self.step.layers)

  def show(self, stack, label: str):
    """Opens the progress bar."""
    steps = self.cfg.train.steps
    compiles = self.step.train._cache_size() == 0 and self.n < steps
    self.bar = stack.enter_context(
      progress.bar(
        total=steps * self.tokens,
        initial=self.n * self.tokens,
        desc=label or self.folder.path.name[:24],
        unit="tok",
        unit_scale=True,
        postfix="compiling" if compiles else "",
      )
    )

  def train(self) -> Result:
    """Steps until the end or a signal, one step ahead of what is logged."""
    t, behind = self.cfg.train, None
    first = True
    while not self.done and not self.stop.name:
      ahead = self.advance(first)
      first = False
      if behind is not None:
        self.record(self.n - 1, behind)
      behind = ahead
      looks = self.n % t.eval_every == 0 or self.done
      if looks or self.n % t.save_every == 0 or self.stop.name:
        self.record(self.n, behind, saved=True)
        behind = None
        self.clock.stop()
        self.save(self.evaluate() if looks else None)
        self.clock.start()
    if behind is not None:
      self.record(self.n, behind, saved=True)
      self.save()
    self.clock.stop()
    self.checkpoints.wait()
    if not self.scores and self.done:
      self.scores = self.score()
    return self.result()

  def advance(self, first: bool) -> dict:
    """Makes a step; its metrics, which may not be there yet.

    The clock starts after the first one, which compiles.
    """
    batch = self.sharding.batch(self.next_batch(self.n), self.R)
    before, cached = time.perf_counter(), self.step.train._cache_size()
    self.state, metrics = self.step.train(self.state, batch)
    self.n += 1
    self.stop.stepped()
    if first:
      jax.block_until_ready(self.state)
      if self.step.train._cache_size() > cached:
        self.compile_seconds = time.perf_counter() - before
        self.tell_start()
      self.clock.start()
    return metrics

  def tell_start(self):
    """How long a command took to its first step, once."""
    global started
    if not started and hosts.first():
      started = True
      all_ = time.perf_counter() - platform.START
      self.bar.write(
        f"the first step was made after {all_:.1f} s, "
        f"{self.compile_seconds:.1f} s of them compiling it",
        file=sys.stderr,
      )

  def record(self, n: int, found: dict, saved: bool = False):
    """Logs step n, whose metrics are done or nearly so; always where it is
    saved, since a resumed run's clock is that of the last line."""
    found = hosts.fetch(found)
    alive = np.atleast_1d(found.pop("alive"))
    values = {k: v.tolist() for k, v in found.items()}
    self.bar.update(self.tokens)
    loss = np.mean(found["loss"])
    self.bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
    if not alive.any():
      self.fail(n, values)
    t = self.cfg.train
    if saved or n % t.log_every == 0 or n == t.steps:
      self.add(n, **values)

  def fail(self, n: int, values: dict):
    self.checkpoints.wait()
    newest = self.checkpoints.latest()
    kept = (
      "nothing was saved yet"
      if newest is None
      else f"the newest checkpoint is of step {newest}"
    )
    raise Diverged(
      f"step {n}: the loss is {values['loss']}, with a gradient norm of "
      f"{values['grad_norm']}; {kept}. Try a lower train.lr than {self.lr}"
    )

  def add(self, n: int, **values):
    """A line of metrics.jsonl; of a list, one column a replicate."""
    lists = {k: v for k, v in values.items() if isinstance(v, list)}
    one = {k: v for k, v in values.items() if not isinstance(v, list)}
    for k, several in lists.items():
      one |= {f"{k}_{i}": v for i, v in enumerate(several)}
    seconds = self.clock.read()
    line = {"step": n, "tokens": n * self.tokens, "seconds": seconds, **one}
    self.log.write(**line)
    self.curve.append(line)

  def score(self, last=False) -> list[Score]:
    return self.scorer(self.state, self.windows, self.windows.bytes, last)

  def evaluate(self) -> dict:
    """Scores the state and logs it; what decides whether it is the best."""
    metric = self.data.metric
    self.bar.set_postfix_str("scoring")
    self.scores = self.score()
    found = [s.metrics for s in self.scores]
    if "ema" in self.state:  # what is averaged is the run's, the last beside
      last = self.score(last=True)
      more = [{f"last_{metric}": s.metrics[metric]} for s in last]
      found = [f | m for f, m in zip(found, more, strict=True)]
    self.bar.set_postfix_str(f"valid {found[0][metric]:.4f}", refresh=False)
    if not self.R:
      names = {"nats": "valid_nats"}
      self.add(self.n, **{names.get(k, k): v for k, v in found[0].items()})
    else:
      self.add(self.n, **{k: [f[k] for f in found] for k in found[0]})
    return {metric: found[0][metric]}

  def save(self, best: dict | None = None):
    self.checkpoints.save(self.n, self.state, self.iterator, best)

  def result(self) -> Result:
    return Result(
      self.state,
      self.n,
      self.done,
      self.scores,
      self.clock.seconds,
      self.compile_seconds,
      self.curve,
      "" if self.done else self.stop.name,
    )
