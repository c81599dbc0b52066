"""Which runs of a comparison are next, and how long they will take.

An arm is a search: a generator that yields a phase and the runs that it wants,
and is sent them once all are there. Hands train groups of these, one at a time
in this process (`Here`) or several at once (train/workers.py).
"""

from collections.abc import Callable, Generator, Mapping
from typing import NamedTuple


class Job(NamedTuple):
  """Runs of one arm that one program trains: pairs of seed and rate."""

  arm: str
  phase: str
  group: tuple[tuple[int, float], ...]


class Took(NamedTuple):
  """Seconds of a job, and those of them that its compiler took."""

  seconds: float
  compiling: float


class Here:
  """This process as the hands: trains what it is given when it is waited for.

  Args:
    train: a Job -> what it took, or None where a signal stopped it.
  """

  at_once = 1

  def __init__(self, train: Callable[[Job], Took | None]):
    self.train, self.job = train, None

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass

  @property
  def busy(self) -> bool:
    return self.job is not None

  @property
  def free(self) -> bool:
    return self.job is None

  def next(self, jobs: list[Job]) -> int:
    """Which of these it would best have now."""
    return 0

  def start(self, job: Job):
    self.job = job

  def wait(self) -> tuple[Job, Took] | None:
    """A job that was done, or None where it was stopped."""
    job, self.job = self.job, None
    took = self.train(job)
    return None if took is None else (job, took)


def finish(searches: Mapping[str, Generator], parted, hands, begins, ends):
  """What every search answers in the end, by its name; None where a signal
  stopped it.

  Args:
    parted: (name, phase, wanted) -> those runs that are there, by what was
      wanted, and the groups of the others.
    hands: what trains, as `Here` does.
    begins: is told a Job before it is trained.
    ends: is told it, and what it took, afterwards.
  """
  order = {name: i for i, name in enumerate(searches)}
  found, asked, left = {}, {}, []

  def ask(name):
    """Sends an arm what it wanted as long as all is there."""
    answer = None
    while True:
      if name in asked:
        phase, wanted = asked[name]
        done, groups = parted(name, phase, wanted)
        if groups:
          return [Job(name, phase, tuple(group)) for group in groups]
        answer = [done[job] for job in wanted]
      try:
        asked[name] = searches[name].send(answer)
      except StopIteration as end:
        found[name] = end.value
        return []

  running = dict.fromkeys(searches, 0)
  with hands:  # which also end where a run that is there is refused
    for name in searches:
      left += ask(name)
    while left or hands.busy:
      while left and hands.free:
        job = left.pop(hands.next(left))
        running[job.arm] += 1
        begins(job)
        hands.start(job)
      ended = hands.wait()
      if ended is None:
        return None
      job, took = ended
      ends(job, took)
      running[job.arm] -= 1
      if not running[job.arm] and job.arm not in {j.arm for j in left}:
        left = sorted(left + ask(job.arm), key=lambda j: order[j.arm])
  return {name: found[name] for name in searches}


class Clock:
  """How many runs are done, and about how long the others will take.

  An arm's runs take as long as its last one here; before there was one, as
  long as their FLOPs have taken in other arms, and compiling as long as there.

  Args:
    flops: name of an arm -> those of a token.
    runs: how many an arm has.
    at_once: how many are trained at a time.

  Attributes:
    running: how many are being trained.
  """

  def __init__(self, flops: Mapping[str, float], runs: int, at_once: int = 1):
    self.flops, self.at_once = flops, at_once
    self.left = dict.fromkeys(flops, runs)
    self.total = runs * len(flops)
    self.running = 0
    self.took = {}  # seconds of a run
    self.compiled = {}  # seconds of an arm

  def done(self, name: str, runs: int, seconds=None, compiling=0.0):
    """runs of an arm are done; in seconds, where they were trained now."""
    self.left[name] -= runs
    if seconds is not None:
      self.took[name] = max(0.0, seconds - compiling) / runs
      self.compiled.setdefault(name, compiling)

  def seconds(self) -> float | None:
    """Of what is left; None before anything was trained."""
    if not self.took:
      return None
    flops = sum(self.flops[name] for name in self.took)
    unit = sum(self.took.values()) / flops
    compiling = sum(self.compiled.values()) / len(self.compiled)
    every = sum(
      left * self.took[name]
      if name in self.took
      else left * unit * self.flops[name] + compiling * bool(left)
      for name, left in self.left.items()
    )
    return every / self.at_once

  @property
  def place(self) -> str:
    """Which run is the next to begin."""
    next_ = self.total - sum(self.left.values()) + self.running + 1
    return f"run {next_} of {self.total}"

  def __str__(self):
    seconds = self.seconds()
    left = "" if seconds is None else f", about {span(seconds)} left"
    return self.place + left


def span(seconds: float) -> str:
  """In the largest unit of which there is about one."""
  for unit, size, digits in (("d", 86_400, 1), ("h", 3600, 1), ("min", 60, 0)):
    if seconds >= 0.95 * size:
      return f"{seconds / size:.{digits}f} {unit}"
  return f"{seconds:.0f} s"
