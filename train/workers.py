"""A process for every chip, which train the runs of one comparison.

Each sees its own chip alone: nothing is exchanged between them but jobs and
what they took, so that a run is what it is in one process. What a worker says
beyond that is in WORKDIR/workers/chip-N.log.

  parent -> worker    what Work holds, then one Job after another
  worker -> parent    (kind, value): "origin" once it is ready, "say" a line,
                      "done" what a job took, "stopped", "error" a class's name
                      and a text

A worker that dies is started again and given its job again, which goes on from
what was saved; one whose parent is gone saves and ends.
"""

import contextlib
import functools
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

from train import platform

PORT = 8476  # a TPU's processes find each other at this one and those after it
DEATHS = 3  # of the workers of one job, with which it is given up
PATIENCE = 60.0  # seconds that a worker has to save in, where it has to end
ERRORS = {e.__name__: e for e in (ValueError, OSError, MemoryError)}


class Chips(NamedTuple):
  """Raises ValueError where there are not as many: see `chips`."""

  kind: str
  number: int


def chips(kind: str | None, number: int) -> Chips:
  """That many chips of a platform; of the best there is without one."""
  sure = [name.lower() for name in platform.sure()]
  # a TPU's device files may be of anything else
  found = [*sure, *filter(platform.device_files, ("gpu", "tpu"))]
  kind = kind or next(iter(found), "cpu")
  if kind == "cpu":
    there, what = platform.core_count(), "cores"
  else:
    chips_ = platform.tpu_chips() if kind == "tpu" else []
    there = len(chips_ or platform.device_files(kind))
    what = f"{kind.upper()}s"
  if number > there:
    raise ValueError(f"--chips={number}, but this machine has {there} {what}")
  return Chips(kind, number)


def environment(kind: str, chip: int) -> dict[str, str]:
  """What leaves a process one chip."""
  if kind == "tpu":
    return {
      "TPU_VISIBLE_CHIPS": str(chip),
      "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
      "TPU_PROCESS_BOUNDS": "1,1,1",
      "TPU_PROCESS_ADDRESSES": f"localhost:{PORT + chip}",
      "TPU_PROCESS_PORT": str(PORT + chip),
      "CLOUD_TPU_TASK_ID": "0",
    }
  if kind == "gpu":
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {
      "CUDA_VISIBLE_DEVICES": given.split(",")[chip] if given else str(chip)
    }
  return {"JAX_NUM_CPU_DEVICES": "1"}


class Work(NamedTuple):
  """What a worker makes its Comparison of."""

  chips: Chips
  chip: int
  planned: Mapping[str, Any]
  fields: Mapping[str, Any]


class Worker:
  """A process on one chip.

  Attributes:
    job: what it is training, or None.
    arm: whose programs it has.
  """

  def __init__(self, work: Work, log: Path):
    self.work, self.log = work, log
    self.job = self.arm = None
    self.start()

  def start(self):
    self.connection, theirs = connection.Pipe()
    own = environment(self.work.chips.kind, self.work.chip)
    from train import workdir

    with workdir.writing(self.log):
      self.log.parent.mkdir(parents=True, exist_ok=True)
      with open(self.log, "ab") as log:
        self.process = subprocess.Popen(
          [sys.executable, "-m", "train.workers", str(theirs.fileno())],
          pass_fds=[theirs.fileno()],
          env=os.environ | own,
          stdin=subprocess.DEVNULL,
          stdout=log,
          stderr=log,
          # Ctrl-C is for the parent, which passes it on
          start_new_session=True,
        )
    theirs.close()
    with contextlib.suppress(OSError):  # it has died, which `read` will say
      self.connection.send(self.work)

  def give(self, job):
    self.job, self.arm = job, job.arm
    with contextlib.suppress(OSError):
      self.connection.send(job)

  def read(self):
    """The next (kind, value), or None where the process has died."""
    try:
      return self.connection.recv()
    except (EOFError, OSError):
      self.process.wait()
      return None

  def end(self):
    """Waits for one whose connection is closed to have saved."""
    try:
      self.process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
      self.process.kill()
      self.process.wait()

  @property
  def last_words(self) -> str:
    lines = self.log.read_text("utf-8", "replace").split("\n")
    return next((line for line in lines[::-1] if line.strip()), "nothing")


class Pool:
  """The hands of train.schedule that are several workers, which start with the
  first job.

  Args:
    comparison: whose runs they train, with its `planned` configs.
    runs: how many of them there can be at a time.

  Attributes:
    origin: where and with what the first of them trains; None before.
  """

  def __init__(self, comparison, runs: int):
    self.comparison, chips = comparison, comparison.chips
    self.say, self.signals = comparison.say, comparison.signals
    self.deaths, self.stopping = {}, False
    self.at_once = min(chips.number, runs)
    if self.at_once < chips.number:
      self.say(
        f"{chips.number} chips, but at most {runs} runs at a time: "
        f"{chips.number - runs} stay idle"
      )
    self.workers, self.origin = [], None

  def launch(self):
    """Starts the workers, and waits for the first.

    Raises:
      ValueError, OSError, MemoryError: what a worker met.
    """
    of = self.comparison
    for i in range(self.at_once):
      work = Work(of.chips, i, of.planned, of.fields)
      log = of.path / "workers" / f"chip-{i}.log"
      self.workers.append(Worker(work, log))
    while self.origin is None:
      list(self.heard())

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for worker in self.workers:
      worker.connection.close()  # has it save and end
    for worker in self.workers:
      worker.end()

  @property
  def busy(self) -> bool:
    return any(worker.job for worker in self.workers)

  @property
  def idle(self) -> list[Worker]:
    return [worker for worker in self.workers if worker.job is None]

  @property
  def free(self) -> bool:
    return not self.stopping and bool(self.idle or not self.workers)

  def next(self, jobs) -> int:
    """One whose arm an idle worker has compiled, or else no other has."""
    arms = [job.arm for job in jobs]
    own = {worker.arm for worker in self.idle}
    others = {worker.arm for worker in self.workers}
    for good in (own.__contains__, lambda arm: arm not in others):
      if any(map(good, arms)):
        return next(i for i, arm in enumerate(arms) if good(arm))
    return 0

  def start(self, job):
    def apart(worker):
      return worker.arm != job.arm, worker.arm is not None

    if not self.workers:
      self.launch()
    min(self.idle, key=apart).give(job)

  def wait(self):
    """A job that was done, or None where a signal stopped them all."""
    while True:
      for worker, took in self.heard():
        job, worker.job = worker.job, None
        if took is not None:
          return job, took
      if self.signals.name and not self.stopping:
        self.stopping = True
        for worker in self.workers:
          worker.process.terminate()
      if self.stopping and not self.busy:
        return None

  def heard(self):
    """Yields workers that are done with a job, and what it took; None where it
    was stopped. Obeys what else they say, for half a second at most."""
    by = {worker.connection: worker for worker in self.workers}
    for ready in connection.wait(by, timeout=0.5):
      worker = by[ready]
      match worker.read():
        case None:
          self.died(worker)
          if self.stopping and worker.job:
            yield worker, None
        case "origin", origin:
          self.origin = self.origin or origin
        case "say", line:
          self.say(line)
        case "done", took:
          yield worker, took
        case "stopped", _:
          if self.stopping:
            yield worker, None
        case "error", (name, text):
          raise ERRORS.get(name, RuntimeError)(text)

  def died(self, worker):
    """Starts it again, with its job."""
    job, code = worker.job, worker.process.returncode
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    deaths = self.deaths[job] = self.deaths.get(job, 0) + 1
    if self.stopping:
      return
    what = f"the process of chip {worker.work.chip} ended ({how})"
    if deaths == DEATHS:
      raise ValueError(
        f"{what}, the third time with {job}; its last words, in {worker.log}: "
        f"{worker.last_words}"
      )
    self.say(f"{what}: it starts again")
    worker.start()
    if job:
      worker.give(job)


def main(descriptor: int):
  """What a worker does."""
  parent = connection.Connection(descriptor)
  work = parent.recv()
  chips, fields = work.chips, work.fields
  if chips.kind == "cpu" and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[work.chip % len(cores)]})
  jobs = queue.SimpleQueue()

  def listen():
    with contextlib.suppress(EOFError, OSError):
      while True:
        jobs.put(parent.recv())
    jobs.put(None)
    if not comparison.signals.name:  # a second one would not wait for a save
      os.kill(os.getpid(), signal.SIGTERM)

  def tell(kind, value=None):
    with contextlib.suppress(OSError):  # nobody is left to hear it
      parent.send((kind, value))

  try:
    platform.setup(chips.kind)
    from train import compare

    comparison = compare.Comparison(**fields, say=print)
    comparison.planned = work.planned
    comparison.say = functools.partial(tell, "say")
    with comparison.signals:
      threading.Thread(target=listen, daemon=True).start()
      tell("origin", comparison.origin)
      while job := jobs.get():
        took = comparison.trained(job, "")
        if took is None:
          tell("stopped")
          break
        tell("done", took)
  except (*ERRORS.values(), RuntimeError) as error:
    full = "RESOURCE_EXHAUSTED" in str(error)  # XLA's
    if isinstance(error, RuntimeError) and not full:
      raise
    tell("error", (type(error).__name__, str(error)))


if __name__ == "__main__":
  main(int(sys.argv[1]))
