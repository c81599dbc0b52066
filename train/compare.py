"""Compares architectures at equal parameters, data, tuning and seeds.

Each arm is given the same grid of learning rates on seed 0, scored on the
validation slice; its best rate, of equal ones that of fewer nats, then trains
seeds 1 ... n, scored on the test slice. Seed s sees the same batches in every
arm. A finished run leaves runs/ARM/PHASE-seedS-lrL/result.json, so an
interrupted comparison goes on where it stopped.
"""

import dataclasses
import datetime
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

import jax

import arch
from arch.count import decoding
from train import data as data_lib
from train import loop, platform, provenance, sizes, workdir
from train.evaluate import Scorer
from train.report import kinds
from train.step import Step

LENGTH = 256  # tokens a sequence of text
RESULT = "result.json"
CODE = "code"  # beside it: train.provenance.code as the run began
DECODE = (1024, 65_536)  # lengths at which decoding is counted
CURVE = ("step", "tokens", "seconds", "loss")
TIMING = ("seconds", "tokens_per_second", "compile_seconds")


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is compared, and at what budget.

  Attributes:
    params: parameters of every arm, within 1 %; None for each config's own.
    tokens: of one run, rounded up to whole steps.
    length: tokens a sequence; None for a task's own, and LENGTH of text.
    batch: sequences a step.
    data: a name that train.data.load knows.
    seeds: how many seeds are trained at an arm's best rate.
    lrs: the grid of peak learning rates.
    eval_bytes: size of the validation and test slices.
    optimizer: of every arm, adamw or muon.
  """

  params: int | None
  tokens: int
  length: int | None
  batch: int
  data: str
  seeds: int
  lrs: tuple[float, ...]
  eval_bytes: int
  optimizer: str = "adamw"

  def __post_init__(self):
    for name in ("tokens", "length", "batch", "seeds", "eval_bytes"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f"{name}={value} must be at least 1")
    if not self.lrs or not all(0 < lr < math.inf for lr in self.lrs):
      raise ValueError(f"lrs={self.lrs}: name positive learning rates")
    if len(set(self.lrs)) < len(self.lrs):
      raise ValueError(f"lrs={self.lrs} names a rate twice")

  @property
  def steps(self) -> int:
    return -(-self.tokens // (self.batch * self.length))

  def apply(self, cfg, data):
    """cfg at this plan's budget, with its sizes solved."""
    cfg = cfg.copy_and_resolve_references()
    cfg.unlock()
    cfg.data.name = self.data
    t = cfg.train
    t.steps, t.length, t.batch = self.steps, self.length, self.batch
    t.optimizer = self.optimizer
    t.warmup = min(t.warmup, self.steps // 10)
    t.save_every = -(-self.steps // 10)
    # only the last state is scored; a look along the way would cost much of a
    # short run
    t.eval_every = self.steps
    t.log_every = max(1, self.steps // 100)
    t.eval_bytes = self.eval_bytes
    cfg.model.length = self.length
    cfg = loop.resolve(cfg, data)
    return cfg if self.params is None else sizes.solve(cfg, self.params)


def best(runs, metric: str, better: str) -> dict:
  """The run of the best score; of several that solve a task, the surest."""
  sign = {"min": 1, "max": -1}[better]
  return min(runs, key=lambda run: (sign * run[metric], run["nats"]))


class Comparison:
  """A comparison in a workdir, which may later be given more arms, rates and
  seeds: what was trained already is kept.

  Args:
    configs: name of an arm -> its config, before the plan is applied.
    plan: the budget.
    path: the workdir, created or gone on with.
    say: prints a line.
    together: how many replicates one program trains; 0 for one on a CPU,
      which gains nothing from more, and all of a phase elsewhere.
    old_code: whether runs that other code of an arm trained are kept.
  """

  def __init__(
    self,
    configs: Mapping,
    plan: Plan,
    path,
    *,
    say,
    together=0,
    old_code=False,
  ):
    if together < 0:
      raise ValueError(f"--together={together} must be at least 0")
    if not configs:
      raise ValueError("no arms to compare: name them in --archs")
    self.path, self.say, self.old_code = Path(path), say, old_code
    # of the code that is about to be imported, whatever is edited meanwhile
    self.code = {n: provenance.code(cfg.model) for n, cfg in configs.items()}
    self.origin = {"versions": platform.versions()}
    self.origin |= {"machine": platform.machine()}
    alone = jax.default_backend() == "cpu"
    self.together = together or (1 if alone else max(plan.seeds, len(plan.lrs)))
    self.signals = loop.Signals()
    self.data, self.configs = {}, {}
    for name, cfg in configs.items():
      with cfg.unlocked():
        cfg.data.name = plan.data
      kind = (cfg.data.tokenizer, cfg.data.vocab)
      if cfg.data.tokenizer == "bytes":
        kind = kind[:1]
      if kind not in self.data:
        self.data[kind] = data_lib.load(cfg.data.to_dict(), progress=say)
      self.configs[name] = (cfg, self.data[kind])
    if plan.length is None:
      data = next(iter(self.data.values()))
      length = data.length if data.is_task else LENGTH
      plan = dataclasses.replace(plan, length=length)
    self.plan = plan

  def run(self) -> dict | None:
    """The results, or None where a signal asked to stop before the end."""
    with workdir.Workdir(self.path) as folder, self.signals:
      first = next(iter(self.data.values()))
      arms, planned = {}, {}
      for name, (cfg, data) in self.configs.items():
        planned[name] = self.plan.apply(cfg, data)
        arms[name] = self.measure(planned[name])
      # arms, rates and seeds may be added later: each run has its own folder
      plan = dataclasses.asdict(self.plan)
      del plan["lrs"], plan["seeds"]
      folder.record(plan, first.hash)
      self.show(arms)
      runs = []
      for name, (_, data) in self.configs.items():
        done = self.arm(name, planned[name], data, arms[name])
        if done is None:
          return None
        runs += done
      return self.results(arms, runs, first)

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
      "decode_flops": {str(n): d.flops.total for n, d in later.items()},
      "state_bytes": {str(n): d.bytes for n, d in later.items()},
    }

  def show(self, arms):
    self.say(f"{'arm':20} {'parameters':>11} {'embedding':>10}  sizes")
    for name, arm in arms.items():
      its = ", ".join(f"{k}={v}" for k, v in arm["sizes"].items())
      self.say(
        f"{name:20} {arm['params']:11,} {arm['params_embedding']:10,}  {its}"
      )

  def arm(self, name, cfg, data, arm) -> list[dict] | None:
    """Tunes and trains one arm; fills in its best rate."""
    step = Step(cfg)
    programs = {"step": step, "scorer": Scorer(step.model)}
    plan = self.plan
    grid = [(0, lr) for lr in plan.lrs]
    tuned = self.several(name, cfg, data, programs, "tune", grid)
    if tuned is None:
      return None
    alive = [run for run in tuned if not run["diverged"]]
    arm["lr"], arm["lr_at_edge"] = None, False
    if not alive:
      self.say(f"{name}: diverged at every rate of {plan.lrs}; name lower ones")
      return tuned
    arm["lr"] = best(alive, data.metric, data.better)["lr"]
    arm["lr_at_edge"] = len(plan.lrs) > 1 and arm["lr"] in (
      min(plan.lrs),
      max(plan.lrs),
    )
    if arm["lr_at_edge"]:
      self.say(
        f"{name}: its best rate, {arm['lr']:g}, is at the edge of the grid; "
        "a wider --lrs may find a better one"
      )
    seeds = [(seed, arm["lr"]) for seed in range(1, plan.seeds + 1)]
    final = self.several(name, cfg, data, programs, "final", seeds)
    return None if final is None else tuned + final

  def several(self, name, cfg, data, programs, phase, jobs):
    """Runs of one arm, as many together as asked for; None if stopped."""
    folder = self.path / "runs" / name
    paths = {
      (seed, lr): folder / f"{phase}-seed{seed}-lr{lr:g}" for seed, lr in jobs
    }
    missing = [job for job in jobs if not (paths[job] / RESULT).exists()]
    for i in range(0, len(missing), self.together):
      group = missing[i : i + self.together]
      path = paths[group[0]]
      if len(group) > 1:
        same = hashlib.sha256(repr(group).encode()).hexdigest()[:16]
        path = folder / f"{phase}-together-{same}"
      code = self.begun(path, name)
      found = self.train(name, cfg, data, programs, phase, group, path)
      if found is None:
        return None
      found = [run | {"code": code} for run in found]
      for job, run in zip(group, found, strict=True):
        with workdir.writing(paths[job]):
          paths[job].mkdir(parents=True, exist_ok=True)
        workdir.replace(paths[job] / RESULT, json.dumps(run))
    return [self.finished(paths[job] / RESULT, cfg, name) for job in jobs]

  def finished(self, file, cfg, name) -> dict:
    """The run of a result.json.

    Raises:
      ValueError: it is not whole, of another config than this, or of other
        code, unless that is to be kept.
    """
    try:
      run = kinds.run_of(file)
      saved = workdir.flat(workdir.tuples(run["config"]))
    except (ValueError, TypeError, KeyError) as error:
      raise ValueError(
        f"{file} holds no whole run ({error!r}): delete it to train that again"
      ) from None
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
    if "code" not in run:  # an older version of this file kept none
      return run | dict.fromkeys(("code", "versions", "machine"))
    commit = (run["versions"] or {}).get("commit") or "unknown"
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

  def train(self, name, cfg, data, programs, phase, group, path):
    """Trains one group and scores it; None if a signal stopped it."""
    cfg = cfg.copy_and_resolve_references()
    with cfg.unlocked():
      cfg.train.seed, cfg.train.lr = group[0]
    together = None if len(group) == 1 else group
    what = ", ".join(f"seed {seed} lr {lr:g}" for seed, lr in group)
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
        label=f"{name} {what}",
        signals=self.signals,
      )
    except loop.Diverged as error:
      self.say(f"{name} {what} diverged: {error}")
      lost = dict.fromkeys(("nats", data.metric, "positions"))
      lost |= dict.fromkeys(TIMING)
      lost |= {"diverged": True, "curve": dict.fromkeys(CURVE, [])}
      return [common | {"seed": seed, "lr": lr} | lost for seed, lr in group]
    if not result.done:
      return None
    scores = result.scores
    if phase == "final":
      windows = data.windows(
        "test", length=cfg.train.length, size=cfg.train.eval_bytes
      )
      scores = programs["scorer"](result.state, windows, windows.bytes)
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
      found.append(run)
      self.say(
        f"{name} {phase} seed {seed} lr {lr:g}: {scores[i]} on {run['split']}, "
        f"{run['tokens_per_second']:,.0f} tokens/s"
      )
    return found

  def timing(self, result, runs: int) -> dict:
    """A run's share of what its group took, so that all add up to the whole."""
    tokens = (result.step - 1) * self.plan.batch * self.plan.length
    seconds = result.seconds / runs
    rate = tokens / max(seconds, 1e-9)
    return dict(
      zip(TIMING, (seconds, rate, result.compile_seconds / runs), strict=True)
    )

  def results(self, arms, runs, data) -> dict:
    """What train.report reads: see train/report/data.py."""
    notes = dict.fromkeys(d.note for d in self.data.values() if d.note)
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
      "tokens": self.plan.steps * self.plan.batch * self.plan.length,
      "arms": arms,
      "runs": runs,
    }
