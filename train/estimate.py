"""What a comparison would take on a chip of train/chips.py, in words.

An arm trains its grid of rates in one program and its seeds in another, each
all at once where there is an accelerator, as launch.compare does. Times are
ranges: from what the compiler expects over how far that is from the least
possible time for programs of which that is known, to what it expects. Reading
data, scoring and saving are not in them.
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import arch
from arch.remat import REMAT
from train import chips, compare, progress, schedule
from train.chips import CHIPS, GIB

HEAD = (
  f"{'arm':19} {'':>7} {'GiB':>6} {'':5} {'ms a step':>10} {'ktok/s':>13} "
  f"{'peak':>6} compile"
)


class Program(NamedTuple):
  """One of an arm's: its step, for as many runs as it trains at once.

  Attributes:
    what: `3 rates`, `3 seeds`, or `6 runs` of both, one by one.
    runs: how many there are; together: how many it trains at once.
    own: whether each has batches of its own.
  """

  what: str
  runs: int
  together: int
  own: bool

  @property
  def replicates(self) -> int:
    return self.together if self.together > 1 else 0


def programs(plan, together: int) -> list[Program]:
  """Those of an arm; together=0 is all."""
  found = []
  kinds = (len(plan.lrs), "rate", False), (plan.seeds, "seed", True)
  for n, what, own in kinds:
    at_once = min(n, together or n)
    rest = n % at_once
    for runs, size in ((n - rest, at_once), (rest, rest)):
      if runs:
        words = many(runs, what)
        found.append(Program(words, runs, size, own and size > 1))
  if all(program.together == 1 for program in found):
    runs = sum(program.runs for program in found)
    return [Program(many(runs, "run"), runs, 1, False)]
  return found


def comparison(
  configs: Mapping,
  plan,
  name: str,
  *,
  together=0,
  processes=0,
  hours=None,
  say,
) -> Iterator[str]:
  """The lines of a table, a program's as soon as it is known.

  Args:
    name: of CHIPS.
    together: how many runs a program trains at once; 0 for all of a phase, or
      for one where each chip has runs of its own.
    processes: as many as train runs at the same time, each on one chip; 0 for
      one process on all chips.
    hours: of a session; None for the site's.

  Raises:
    ValueError: more processes than chips.
  """
  chip = CHIPS[name]
  devices = chips.devices(chip)
  if processes > len(devices):
    raise ValueError(
      f"--chips={processes}, but {name} has {many(len(devices), 'chip')}"
    )
  where, at_once, apart = many(len(devices), "chip"), 1, 1
  if processes:
    devices, together = devices[:1], together or 1
    apart = -(-max(len(plan.lrs), plan.seeds) // together)
    at_once = min(processes, apart * len(configs))
    where = f"{many(at_once, 'process')} with a chip each"
  arms = compare.loaded(configs, plan, say)
  plan = compare.lengthened(plan, next(iter(arms.values()))[1])
  planned = compare.sized(arms, plan)
  yield (
    f"{name}: {where} of {chip.memory / GIB:g} GiB, by {chips.libraries()}"
  )
  errors = chips.errors(chip, devices)
  told = ", ".join(f"{error:.2f} for {what}" for what, error in errors.items())
  yield f"what its compiler expects, over the least possible time: {told}"
  yield (
    f"{many(plan.steps, 'step')} of {plan.batch:,} x {plan.length:,} tokens\n\n"
    f"{HEAD}\n{'-' * len(HEAD)}"
  )
  sums, known = Sums(max(errors.values()), at_once, apart), {}
  each = [
    (arm, cfg, program)
    for arm, cfg in planned.items()
    for program in programs(plan, together)
  ]
  for arm, cfg, program in progress.bar(each, "programs", unit="program"):
    label = f"{progress.short(arm, 19):19} {program.what:>7}"
    key = arm, program.replicates, program.own
    if key not in known:  # else its step is the same program
      known[key] = fitted(cfg, chip, devices, program)
    refused, found = known[key]
    if found is None:
      yield f"{label} no: {refused}, nor with a batch of one"
      sums.unfit.append(arm)
      continue
    words, cfg, changed, cost = found
    if refused:
      yield f"{label} no: {refused}; with {words}"
      label = " " * len(label)
    steps = -(-plan.tokens // tokens(cfg)) * program.runs // changed.together
    sums.add((arm, words, changed.replicates, changed.own), words, cost, steps)
    yield f"{label} {row(cfg, chip, devices, changed, cost, sums.far)}"
  yield "-" * len(HEAD)
  yield from sums.lines(*chip.site, hours)


def many(n: int, what: str) -> str:
  plural = "es" if what.endswith("s") else "s"
  return f"{n:,} {what}{plural * (n != 1)}"


def tokens(cfg) -> int:
  """Of a run's step."""
  return cfg.train.batch * cfg.train.length


class Sums:
  """Of all programs.

  Attributes:
    far: how far what is expected may be from what is possible.
    expected: seconds of steps; compiled: those of compiling each program.
    flags: with which some fit; unfit: arms that do not fit at all.
    uncounted: instructions without cycles in a step, the most of a program.
    at_once: processes that share the runs; apart: how many of an arm's they
      train at a time, each of which compiles.
  """

  def __init__(self, far: float, at_once: int = 1, apart: int = 1):
    self.far, self.expected, self.compiled = far, 0.0, {}
    self.at_once, self.apart = at_once, apart
    self.flags, self.unfit, self.uncounted = {}, [], {}

  def add(self, key, flags: str, cost: chips.Cost, steps: int):
    """A program, which is compiled once a key, and its steps."""
    if flags:
      self.flags[flags] = True
    self.expected += cost.seconds * steps
    self.compiled[key] = cost.compiling
    for kind, n in cost.uncounted.items():
      self.uncounted[kind] = max(n, self.uncounted.get(kind, 0))

  def lines(self, site, session, week, hours) -> Iterator[str]:
    if self.uncounted:
      told = ", ".join(f"{n} {kind}" for kind, n in self.uncounted.items())
      yield f"not in these times, of a step at most: {told}"
    if self.flags:
      yield (
        f"each as it fits, by {', '.join(self.flags)}; flags of one comparison "
        "hold for all of it, which then takes longer:"
      )
    if self.unfit:
      yield f"without {', '.join(dict.fromkeys(self.unfit))}:"
    if not self.expected:
      return
    compiling = sum(self.compiled.values()) * self.apart / self.at_once
    first, last = (
      (t / self.at_once + compiling) / 3600
      for t in (self.expected / self.far, self.expected)
    )
    session = hours or session
    words = (
      f"training and compiling: {span(first, last)}, of it compiling "
      f"{schedule.span(compiling)} as it took here; "
      f"{many(math.ceil(last / session), 'session')} of {session:g} h ({site})"
    )
    if week:
      words += f", at most {last / week:.1%} of a week's {week:g} h"
    yield words


def fitted(cfg, chip, devices, program: Program):
  """Why a program does not fit, or None; and the first of those that cost least
  which does: the flags, config, program and Cost, or None."""
  refused = None
  for words, own, changed in (("", cfg, program), *cheaper(cfg, program)):
    try:
      cost = chips.step(own, chip, devices, changed.replicates, changed.own)
    except chips.Refused as error:
      refused = refused or error
      continue
    return refused, (words, own, changed, cost)
  return refused, None


def row(cfg, chip, devices, program, cost, far) -> str:
  count = tokens(cfg) * program.together
  model = arch.abstract(cfg.model)
  flops = arch.count(model, cfg.train.length).training * count
  share = flops / (cost.seconds * chip.peak * len(devices))
  used = cost.memory / chip.memory
  fits = "fits" if used < chips.TIGHT else "tight"
  ms, rate = 1e3 * cost.seconds, count / cost.seconds / 1e3
  return (
    f"{cost.memory / GIB:6.2f} {fits:5} "
    f"{f'{short(ms / far)}–{short(ms)}':>10} "
    f"{f'{rate:,.0f}–{rate * far:,.0f}':>13} "
    f"{f'{share:.1%}':>6} {cost.compiling:5.0f} s"
  )


def short(number: float) -> str:
  """Of two digits at least."""
  return f"{number:.{max(0, 1 - math.floor(math.log10(number)))}f}"


def cheaper(cfg, program: Program):
  """Flags, and the config and program that they make, one after another."""

  def having(remat="block", **fields):
    changed = cfg.copy_and_resolve_references().unlock()
    changed.model.remat = remat
    changed.train.update(fields)
    return changed

  for remat in REMAT[REMAT.index(cfg.model.remat) + 1 :]:
    yield f"--remat={remat}", having(remat), program
  alone = program._replace(together=1, own=False)
  words = "--remat=block"
  if program.together > 1:
    if cfg.model.remat != "block":
      yield "--remat=auto --together=1", having("auto"), alone
    words += " --together=1"
    yield words, having(), alone
  batch, parts = cfg.train.batch, 2 * cfg.train.accumulate
  while batch % parts == 0:
    accumulate = f"{words} --set=train.accumulate={parts}"
    yield accumulate, having(accumulate=parts), alone
    parts *= 2
  if cfg.train.accumulate > 1:
    words += " --set=train.accumulate=1"
  while (batch := batch // 2) > 0:
    smaller = having(batch=batch, accumulate=1)
    yield f"{words} --batch={batch}", smaller, alone


def span(low: float, high: float) -> str:
  """Of two times in hours."""
  first, last = schedule.span(3600 * low), schedule.span(3600 * high)
  return last if first == last else f"{first} to {last}"
