"""Compares architectures at equal parameters or FLOPs, data, tuning and seeds.

Each arm is given the same grid of learning rates on seed 0, scored on the
validation slice; its best rate, of equal ones that of fewer nats, then trains
seeds 1 ... n, scored on the test slice. Seed s sees the same batches in every
arm. A finished run leaves runs/ARM/PHASE-seedS-lrL/result.json, so an
interrupted comparison goes on where it stopped; its checkpoints are dropped.
"""

import dataclasses
import datetime
import hashlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import arch
from arch import arrays
from arch.count import decoding
from configs import path_of
from train import (
  artefact,
  checkpoint,
  loop,
  models,
  platform,
  progress,
  provenance,
  schedule,
  sizes,
  workdir,
  workers,
)
from train import data as data_lib
from train.evaluate import Scorer
from train.plan import Plan
from train.report import kinds
from train.step import Step

LENGTH = 256  # tokens a sequence of text
RESULT = "result.json"
CODE = "code"  # beside it: train.provenance.code as the run began
DECODE = (1024, 65_536)  # lengths at which decoding is counted
CURVE = ("step", "tokens", "seconds", "loss")
LOGGED = ("grad_norm", *CURVE)  # beside what an architecture says of itself
EXPORT = "8"  # bits of the file that an arm's size is told of
TIMING = ("seconds", "tokens_per_second", "compile_seconds")


def apply(plan: Plan, cfg, data):
  """cfg at the plan's budget, with its sizes solved."""
  cfg = cfg.copy_and_resolve_references()
  cfg.unlock()
  cfg.data.name = plan.data
  t = cfg.train
  t.steps, t.length, t.batch = plan.steps, plan.length, plan.batch
  t.optimizer = plan.optimizer
  t.warmup = min(t.warmup, plan.steps // 10)
  t.save_every = -(-plan.steps // 10)
  # only the last state is scored; a look along the way would cost much of a
  # short run
  t.eval_every = plan.steps
  t.log_every = max(1, plan.steps // 100)
  t.eval_bytes = plan.eval_bytes
  cfg.model.length = plan.length
  cfg = loop.resolve(cfg, data)
  if plan.flops is not None:
    return sizes.solve(cfg, plan.flops, of="FLOPs a token")
  return cfg if plan.params is None else sizes.solve(cfg, plan.params)


def loaded(configs: Mapping, plan: Plan, say) -> dict[str, tuple]:
  """Every arm's config and data; those of one tokeniser read one text."""
  found, arms = {}, {}
  for name, cfg in configs.items():
    with cfg.unlocked():
      cfg.data.name = plan.data
    kind = (cfg.data.tokenizer, cfg.data.vocab)
    if cfg.data.tokenizer == "bytes":
      kind = kind[:1]
    if kind not in found:
      found[kind] = data_lib.load(cfg.data.to_dict(), progress=say)
    arms[name] = cfg, found[kind]
  return arms


def lengthened(plan: Plan, data) -> Plan:
  """With a length, which of a task may be its own."""
  length = data.length if data.is_task else LENGTH
  return dataclasses.replace(plan, length=plan.length or length)


def sized(arms: Mapping, plan: Plan) -> dict:
  """Every arm's config at the plan's budget.

  Raises:
    ValueError: an arm has not what was set, of all arms or of it.
  """
  planned = {}
  for name, (cfg, data) in progress.bar(
    arms.items(), "sizes of the arms", unit="arm", leave=False
  ):
    own = planned[name] = apply(plan, cfg, data)
    here, given = workdir.flat(own.to_dict()), workdir.flat(cfg.to_dict())
    for setting in (*plan.settings, *name.split(":")[1:]):
      path = path_of(cfg, setting.partition("=")[0], name)
      if given.get(path) != here.get(path):
        raise ValueError(
          f"{name}: {path}={given.get(path)} would be {here.get(path)}: a "
          "comparison solves sizes (--params=none keeps a config's own) and "
          "warms up for a tenth of its steps at most"
        )
  return planned


def best(runs, metric: str, better: str) -> dict:
  """The run of the best score; of several that solve a task, the surest."""
  sign = {"min": 1, "max": -1}[better]
  return min(runs, key=lambda run: (sign * run[metric], run["nats"]))


def rate(lr: float) -> str:
  """As few digits as tell it from every other rate."""
  return short if float(short := f"{lr:g}") == lr else repr(lr)


def pairs(group) -> str:
  return ", ".join(f"seed {seed} lr {rate(lr)}" for seed, lr in group)


def whole(file, cfg) -> dict:
  """The run of a result.json.

  Raises:
    ValueError: it is not whole, or of another config than this.
  """
  try:
    run = kinds.run_of(file)
  except ValueError as error:
    raise ValueError(
      f"{file} holds no whole run ({error}): delete it to train that again"
    ) from None
  saved = workdir.flat(workdir.tuples(run["config"]))
  given = workdir.flat(workdir.plain(cfg))
  other = [
    f"{k}: saved {saved.get(k)!r}, given {given.get(k)!r}"
    for k in saved | given
    if saved.get(k) != given.get(k) and k not in ("train.seed", "train.lr")
  ]
  if other:
    raise ValueError(
      f"{file} is of another config; name another --workdir, or delete it "
      "to train it again:\n  " + "\n  ".join(other)
    )
  return run


def statistics(lines, own: str) -> dict[str, float]:
  """What an architecture says of itself, the mean of a run's last tenth.

  Args:
    own: the ending of a replicate's columns.
  """
  names = [k.removesuffix(own) for k in lines[-1] if k.endswith(own)]
  last = lines[-(-len(lines) * 9 // 10) :] or lines[-1:]
  found = {}
  for name in names:
    values = [line.get(f"{name}{own}") for line in last]
    if name not in LOGGED and all(type(v) in (int, float) for v in values):
      found[name] = float(np.mean(values))
  return {k: v for k, v in found.items() if math.isfinite(v)}


def exported(state, programs, windows) -> list[dict | None]:
  """Of each replicate the bytes of its arrays in a file of EXPORT bits, and
  what it scores then; None where there is nothing to write them with."""
  R = state["step"].shape  # () for a run by itself
  count = R[0] if R else 1
  try:
    artefact.coder()
  except ValueError:
    return [None] * count
  averaged = "ema" if "ema" in state else "params"
  params, buffers = jax.device_get((state[averaged], state["buffers"]))
  model, found, sizes_ = programs["step"].model, [], []
  for i in range(count):
    own = (
      jax.tree.map(lambda a, i=i: jnp.asarray(a[i] if R else a), tree)
      for tree in (params, buffers)
    )
    model_, size = artefact.rounded(arrays.fill(model, *own), EXPORT)
    found.append(arrays.pure(model_)[0])
    sizes_.append(size)
  whole = jax.tree.map(lambda *a: np.stack(a) if R else a[0], *found)
  scores = programs["scorer"](state | {averaged: whole}, windows, windows.bytes)
  files = []
  for size, score in zip(sizes_, scores, strict=True):
    own = score.metrics.items()
    own = {k: v if math.isfinite(v) else None for k, v in own}
    files.append({"bits": EXPORT, "bytes": size} | own)
  return files


class Comparison:
  """A comparison in a workdir, which may later be given more arms, rates and
  seeds: what was trained already is kept.

  Args:
    configs: name of an arm -> its config, before the plan is applied.
    plan: the budget.
    path: the workdir, created or gone on with.
    say: prints a line.
    together: how many replicates one program trains; 0 for one on a CPU,
      which gains nothing from more, and where each chip has runs of its own;
      all of a phase elsewhere.
    keep: whose checkpoints stay once a run is scored: of none, of every arm's
      first seed ("one"), of all.
    old_code: whether runs that other code of an arm trained are kept.
    seconds: from now on, after which it stops as a signal stops it.
    chips: of a platform each of which one process shall train on; None for
      this process, on all devices it has.

  Raises:
    ValueError: before any data are loaded, where the workdir holds another.
  """

  def __init__(
    self,
    configs: Mapping,
    plan: Plan,
    path,
    *,
    say,
    together=0,
    keep="one",
    old_code=False,
    seconds=None,
    chips: workers.Chips | None = None,
  ):
    if together < 0:
      raise ValueError(f"--together={together} must be at least 0")
    if not configs:
      raise ValueError("no arms to compare: name them in --archs")
    self.path, self.say = Path(path), say
    self.keep, self.old_code = keep, old_code
    self.refuse_another(plan)
    # of the code that is about to be imported, whatever is edited meanwhile
    self.code = {n: provenance.code(cfg.model) for n, cfg in configs.items()}
    self.origin = {"versions": platform.versions()}
    self.origin |= {"machine": platform.machine()}
    self.chips = chips
    self.compiled = None, {}  # the last arm, and its programs
    self.counted = set()  # results that the clock has
    self.place = ""  # of the run that begins
    alone = chips or jax.default_backend() == "cpu"
    self.together = together or (1 if alone else max(plan.seeds, len(plan.lrs)))
    self.signals = loop.Signals(seconds)
    self.configs = loaded(configs, plan, say)
    self.data = list({id(d): d for _, d in self.configs.values()}.values())
    self.plan = lengthened(plan, self.data[0])
    self.refuse_another(self.plan)

  def refuse_another(self, plan: Plan):
    if not (self.path / "config.json").exists() or not workdir.holds(self.path):
      return
    saved = workdir.read(self.path)["config"]
    if workdir.kind(saved) != "comparison":
      raise workdir.another(self.path, saved, plan.fixed, {})
    other = plan.other(saved)
    if other:
      own = self.path.parent / plan.folder
      if own == self.path:
        own = self.path.with_name(f"{own.name}-2")
      raise ValueError(
        f"{self.path} holds another comparison: {'; '.join(other)}. Name "
        f"another folder, such as --workdir={own}"
      )

  def run(self) -> dict | None:
    """The results, or None where a signal asked to stop before the end."""
    with workdir.Workdir(self.path) as folder:
      first = self.data[0]
      planned = sized(self.configs, self.plan)
      each = progress.bar(
        planned.items(), "costs of the arms", unit="arm", leave=False
      )
      arms = {name: self.measure(cfg) for name, cfg in each}
      # arms, rates and seeds may be added later: each run has its own folder
      folder.record(self.plan.fixed, first.hash)
      self.show(arms)
      self.planned = planned
      hands = self.hands()
      self.clock = schedule.Clock(
        {name: arm["flops_per_token"] for name, arm in arms.items()},
        len(self.plan.lrs) + self.plan.seeds,
        hands.at_once,
      )
      searches = {name: self.search(name, arm) for name, arm in arms.items()}
      with self.signals:
        found = schedule.finish(
          searches, self.parted, hands, self.begins, self.ends
        )
      if found is None:
        return None
      self.say(self.kept())
      runs = sum(found.values(), [])
      if self.chips:  # which this process has none of
        self.origin = hands.origin or {
          key: runs[-1][key] for key in self.origin
        }
      return self.results(arms, runs, first)

  def hands(self):
    """What trains: this process, or one for every chip."""
    if not self.chips:
      return schedule.Here(lambda job: self.trained(job, self.place))
    most = -(-max(len(self.plan.lrs), self.plan.seeds) // self.together)
    return workers.Pool(self, most * len(self.planned))

  @property
  def fields(self) -> dict:
    """What a worker makes its own of."""
    return {
      "configs": {name: cfg for name, (cfg, _) in self.configs.items()},
      "plan": self.plan,
      "path": self.path,
      "together": self.together,
      "keep": self.keep,
      "old_code": self.old_code,
    }

  def kept(self) -> str:
    """How much of the disk the workdir takes, and why."""
    files = (file for file in self.path.rglob("*") if file.is_file())
    size = sum(file.stat().st_size for file in files)
    what = {"all": "all states", "one": "states of one seed an arm"}
    what = what.get(self.keep, "no states")
    if not any(self.path.glob("runs/*/*/checkpoints/[0-9]*")):
      what = "no states"
    # of runs that were trained together none can be read alone
    more = ", --together=1" if self.keep == "one" and self.together > 1 else ""
    return f"{size / 1e6:,.1f} MB in {self.path}: {what} (--keep{more})"

  def measure(self, cfg) -> dict:
    """What an arm's model costs."""
    model = arch.abstract(cfg.model)
    sizes_ = arch.count(model, cfg.train.length)
    later = {n: decoding(model, n) for n in DECODE}
    return {
      "params": sizes_.params,
      "params_embedding": sizes_.embedding,
      "sizes": {
        "dim": cfg.model.dim,
        "depth": cfg.model.depth,
        cfg.match.size.removeprefix("model."): sizes.get(cfg, cfg.match.size),
      },
      "flops_per_token": sizes_.forward.total,
      "training_flops_per_token": sizes_.training + self.taught(cfg, sizes_),
      "decode_flops": {str(n): d.flops.total for n, d in later.items()},
      "state_bytes": {str(n): d.bytes for n, d in later.items()},
    }

  def taught(self, cfg, own) -> float:
    """FLOPs a token of a teacher, if any: its call, and both its answers and
    the model's, which are made for it again."""
    if not cfg.train.teacher:
      return 0.0
    model = models.trained(cfg.train.teacher).model
    call = arch.count(model, cfg.train.length).forward
    return call.total + 3 * own.forward.groups["vocab"]

  def show(self, arms):
    self.say(f"{'arm':20} {'parameters':>11} {'embedding':>10}  sizes")
    for name, arm in arms.items():
      its = ", ".join(
        f"{'.'.join(k.split('.')[-2:])}={v}" for k, v in arm["sizes"].items()
      )
      self.say(
        f"{name:20} {arm['params']:11,} {arm['params_embedding']:10,}  {its}"
      )

  def search(self, name, arm):
    """Tunes one arm and trains its seeds, as train.schedule asks for it; fills
    in its best rate."""
    plan, (_, data) = self.plan, self.configs[name]
    tuned = yield "tune", [(0, lr) for lr in plan.lrs]
    alive = [run for run in tuned if not run["diverged"]]
    arm["lr"], arm["lr_at_edge"] = None, False
    if not alive:
      self.say(f"{name}: diverged at every rate of {plan.lrs}; name lower ones")
      self.clock.done(name, plan.seeds)  # there will be none
      return tuned
    arm["lr"] = best(alive, data.metric, data.better)["lr"]
    arm["lr_at_edge"] = len(plan.lrs) > 1 and arm["lr"] in (
      min(plan.lrs),
      max(plan.lrs),
    )
    if arm["lr_at_edge"]:
      self.say(
        f"{name}: best rate {rate(arm['lr'])} is at the edge of the grid; try "
        "a wider --lrs"
      )
    seeds = [(seed, arm["lr"]) for seed in range(1, plan.seeds + 1)]
    return tuned + (yield "final", seeds)

  def parted(self, name, phase, wanted):
    """Those runs of an arm that are there, and groups of the others.

    Raises:
      ValueError: one that is there is not to be kept: see `finished`.
    """
    files = {job: self.file(name, phase, *job) for job in wanted}
    done = {
      job: self.finished(file, self.planned[name], name)
      for job, file in files.items()
      if file.exists()
    }
    new = {files[job] for job in done} - self.counted
    self.counted |= new
    self.clock.done(name, len(new))
    missing = [job for job in wanted if job not in done]
    starts = range(0, len(missing), self.together)
    return done, [missing[i : i + self.together] for i in starts]

  def begins(self, job):
    what = pairs(job.group)
    self.say(f"{self.clock}: {job.arm} {job.phase} {what}")
    self.place = self.clock.place
    self.clock.running += len(job.group)

  def ends(self, job, took):
    self.clock.running -= len(job.group)
    self.counted |= {self.file(*job[:2], *one) for one in job.group}
    self.clock.done(job.arm, len(job.group), *took)

  def trained(self, job, place: str):
    """Trains a job's runs and writes their results; what it took, or None if a
    signal stopped it.

    Args:
      place: what the progress bar says first.
    """
    name, phase, group = job
    files = [self.file(name, phase, *one) for one in group]
    path = files[0].parent
    if len(group) > 1:
      same = hashlib.sha256(repr(list(group)).encode()).hexdigest()[:16]
      path = path.with_name(f"{phase}-together-{same}")
    start = time.perf_counter()
    code = self.begun(path, name)
    cfg, (_, data) = self.planned[name], self.configs[name]
    programs = self.programs(name)
    found = self.train(name, cfg, data, programs, phase, group, path, place)
    if found is None:
      return None
    for file, run in zip(files, found, strict=True):
      with workdir.writing(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
      workdir.replace(file, json.dumps(run | {"code": code}))
    self.drop(path, phase, group)
    compiling = sum(run["compile_seconds"] or 0 for run in found)
    return schedule.Took(time.perf_counter() - start, compiling)

  def programs(self, name) -> dict:
    """What an arm's runs are made with, compiled once; the last arm's stay."""
    if self.compiled[0] != name:
      step = Step(self.planned[name])
      self.compiled = name, {"step": step, "scorer": Scorer(step.model)}
    return self.compiled[1]

  def file(self, name, phase, seed, lr) -> Path:
    return self.folder(self.path / "runs" / name, phase, seed, lr) / RESULT

  @staticmethod
  def folder(folder, phase, seed, lr) -> Path:
    """A run's folder; once it was named by six digits of its rate."""
    path = folder / f"{phase}-seed{seed}-lr{rate(lr)}"
    old = folder / f"{phase}-seed{seed}-lr{lr:g}"
    if not path.exists() and (old / RESULT).exists():
      try:
        own = json.loads((old / RESULT).read_text("utf-8"))["lr"] == lr
      except (ValueError, TypeError, KeyError):
        own = False  # another rate's or, if not, trained again
      return old if own else path
    return path

  def drop(self, path, phase, group):
    """Deletes what only a run that goes on needs; results stand already.

    Of several runs that were trained together none can be read alone.
    """
    first = phase == "final" and [seed for seed, _ in group] == [1]
    if self.keep == "none" or self.keep == "one" and not first:
      checkpoint.drop(path)
    elif self.keep == "one":
      checkpoint.drop(path, but=next(iter(checkpoint.ranked(path)), None))

  def finished(self, file, cfg, name) -> dict:
    """The run of a result.json.

    Raises:
      ValueError: it is not whole, of another config than this, or of other
        code, unless that is to be kept.
    """
    # an older version of this file kept none of these
    own = dict.fromkeys(("code", "versions", "machine", "exported"))
    run = own | {"statistics": {}} | whole(file, cfg)
    commit = str((run["versions"] or {}).get("commit", "unknown"))
    self.same_code(f"{file} (commit {commit[:7]})", run["code"], name)
    return run

  def begun(self, path, name) -> str | None:
    """The code that a run's first steps are of; None where that is not known.

    Raises:
      ValueError: it is other code than now, unless that is to be kept.
    """
    file = path / CODE
    if any(path.glob("checkpoints/*")):
      code = file.read_text("utf-8") if file.exists() else None
      self.same_code(path, code, name)
      return code
    with workdir.writing(path):
      path.mkdir(parents=True, exist_ok=True)
    workdir.replace(file, self.code[name])
    return self.code[name]

  def same_code(self, what, code, name):
    if code not in (None, self.code[name]) and not self.old_code:
      raise ValueError(
        f"{what} was trained by other code of {name}: name another --workdir, "
        "delete it to train it again, or keep it with --old_code"
      )

  def train(self, name, cfg, data, programs, phase, group, path, place):
    """Trains one group and scores it; None if a signal stopped it."""
    cfg = cfg.copy_and_resolve_references()
    with cfg.unlocked():
      cfg.train.seed, cfg.train.lr = group[0]
    together = None if len(group) == 1 else group
    common = {
      "arch": name,
      "phase": phase,
      "split": "valid" if phase == "tune" else "test",
      "params": sizes.parameters(cfg),
      "tokens": self.plan.steps * self.plan.batch * self.plan.length,
      "config": workdir.plain(cfg),
      **self.origin,
    }
    try:
      result = loop.run(
        cfg,
        path,
        data,
        **programs,
        replicates=together,
        label=place,
        signals=self.signals,
      )
    except loop.Diverged as error:
      self.say(f"{name} {pairs(group)} diverged: {error}")
      lost = dict.fromkeys(("nats", data.metric, "positions"))
      lost |= dict.fromkeys(TIMING)
      lost |= {"diverged": True, "curve": dict.fromkeys(CURVE, [])}
      lost |= {"statistics": {}, "exported": None}
      return [common | {"seed": seed, "lr": lr} | lost for seed, lr in group]
    if not result.done:
      return None
    scores, files = result.scores, [None] * len(group)
    if phase == "final":
      windows = data.windows(
        "test", length=cfg.train.length, size=cfg.train.eval_bytes
      )
      scores = programs["scorer"](result.state, windows, windows.bytes)
      files = exported(result.state, programs, windows)
    found = []
    for i, (seed, lr) in enumerate(group):
      own = "" if together is None else f"_{i}"
      lines = [line for line in result.curve if f"loss{own}" in line]
      curve = {key: [line[key] for line in lines] for key in CURVE[:-1]}
      curve["seconds"] = [s / len(group) for s in curve["seconds"]]
      curve["loss"] = [line[f"loss{own}"] for line in lines]
      score = scores[i].metrics
      # of a run that was alive, the last update may have been one too many
      alive = result.alive[i] and all(map(math.isfinite, score.values()))
      run = common | {"seed": seed, "lr": lr, "curve": curve}
      run |= self.timing(result, len(group))
      run |= score if alive else dict.fromkeys(score)
      run |= {"diverged": not alive, "positions": scores[i].positions}
      run |= {"statistics": statistics(lines, own)}
      run |= {"exported": files[i] if alive else None}
      found.append(run)
      self.say(f"{name} {phase} seed {seed} lr {rate(lr)}: {scores[i]}")
    return found

  def timing(self, result, runs: int) -> dict:
    """A run's share of what its group took, so that all add up to the whole."""
    tokens = (result.step - 1) * self.plan.batch * self.plan.length
    seconds = result.seconds / runs
    each = tokens / max(seconds, 1e-9) if tokens else None
    return dict(
      zip(TIMING, (seconds, each, result.compile_seconds / runs), strict=True)
    )

  def results(self, arms, runs, data) -> dict:
    """What train.report reads: see train/report/data.py."""
    notes = dict.fromkeys(d.note for d in self.data if d.note)
    return {
      "format": 1,
      "created": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
      "command": platform.command(),
      **self.origin,
      "data": {
        "name": data.name,
        "hash": data.hash,
        "note": "; ".join(notes),
        "tokenizer": ", ".join(
          dict.fromkeys(cfg.data.tokenizer for cfg, _ in self.configs.values())
        ),
        "is_task": data.is_task,
      },
      "metric": data.metric,
      "length": self.plan.length,
      "batch": self.plan.batch,
      "optimizer": self.plan.optimizer,
      "eval_bytes": self.plan.eval_bytes,
      "settings": list(self.plan.settings),
      "tokens": self.plan.steps * self.plan.batch * self.plan.length,
      "arms": arms,
      "runs": runs,
    }
