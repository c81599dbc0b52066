"""What a comparison found, as rows, curves and sentences.

`results`, the dict that launch.compare writes and everything here reads:
  format (1), created, command, versions, machine
  data: name, hash, note, tokenizer, is_task
  metric: "bits_per_byte" or "accuracy"; length, batch, optimizer; eval_bytes:
    of the slices that are scored; tokens: of one run
  arms: {name: params, params_embedding, sizes, flops_per_token (forward, at
    `length`), decode_flops and state_bytes ({"1024": , "65536": }), lr,
    lr_at_edge}
  runs: [arch, seed, lr, phase ("tune" or "final"), split, the metric, nats (a
    target), positions (targets that were scored), params, tokens, seconds,
    tokens_per_second, compile_seconds, diverged, curve {step, tokens, seconds,
    loss (nats a target)}, config; code (train.provenance.code), versions and
    machine of when it was trained, None where that is not known; statistics
    (what its architecture said of itself at the end, by name), and exported:
    bits, bytes and the score of its rounded weights, None without a coder]
A diverged run has None for its scores. Of runs that were trained together each
has its share of their seconds. ValueErrors name what does not fit.
"""

import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import NamedTuple

import numpy as np

from train import statistics

FORMAT = 1
FIRST_LOOK = 5  # tokens a parameter below which a ranking may still turn
ALIKE = ("metric", "tokens", "length", "batch", "optimizer", "eval_bytes")
KEYS = (
  *("created", "command", "versions", "machine", "data", "arms", "runs"),
  *ALIKE,
)
CONTEXTS = {"1024": "1k", "65536": "64k"}
BINS = 64  # points of a drawn curve
ANSWERS = 2500  # to a task, below which an accuracy is known to worse than .01


class Metric(NamedTuple):
  name: str
  lower: bool  # is better

  @property
  def better(self) -> str:
    return "lower" if self.lower else "higher"


METRICS = {
  "bits_per_byte": Metric("bits per byte", True),
  "accuracy": Metric("accuracy", False),
}


def metric(results) -> Metric:
  return METRICS[results["metric"]]


def check(results):
  """Returns `results`, or raises ValueError where a report cannot be made."""
  if results.get("format") != FORMAT:
    raise ValueError(
      f"results have format {results.get('format')!r}, this reads {FORMAT}"
    )
  missing = [key for key in KEYS if key not in results]
  if missing:
    raise ValueError(f"results lack {', '.join(missing)}")
  if results["metric"] not in METRICS:
    raise ValueError(
      f"metric {results['metric']!r} is none of {sorted(METRICS)}"
    )
  seen = set()
  for run in results["runs"]:
    if run["arch"] not in results["arms"]:
      raise ValueError(
        f"a run of {run['arch']!r}, but the arms are {list(results['arms'])}"
      )
    key = run["arch"], run["seed"]
    if run["phase"] == "final":
      if key in seen:
        raise ValueError(f"two final runs of {key[0]!r} with seed {key[1]}")
      seen.add(key)
  return results


def score(results, run) -> float | None:
  """A run's score; None where it diverged."""
  value = run[results["metric"]]
  if run["diverged"] or value is None or not math.isfinite(value):
    return None
  return float(value)


def runs_of(results, arm, phase):
  return [
    run
    for run in results["runs"]
    if run["arch"] == arm and run["phase"] == phase
  ]


def alike(results) -> dict:
  """What has to be equal for arms to be ranked together, beside the data."""
  # results of before there were any have no settings
  settings = " ".join(results.get("settings", ())) or "none"
  return {name: results[name] for name in ALIKE} | {"settings": settings}


def merge(named: Mapping[str, dict]) -> list[dict]:
  """Joins the results of several workdirs, one dict for each condition.

  What was trained and scored alike (data hash and `alike`) becomes one
  comparison; the rest stay apart and are never ranked together. An arm that
  several workdirs have takes "@" and the end of the workdir's path that tells
  it from the others as a suffix. `sources`
  of each dict keeps when, how and where each workdir was made; results that
  were merged may be merged again.
  """
  counts = {}
  for results in named.values():
    for arm in check(results)["arms"]:
      counts[arm] = counts.get(arm, 0) + 1

  ends, conditions = endings(named), {}
  for name, results in named.items():
    key = results["data"]["hash"], *alike(results).values()
    kept = {k: v for k, v in results.items() if k != "leaderboard"}
    joined = conditions.setdefault(
      key, kept | {"arms": {}, "runs": [], "sources": []}
    )
    joined["data"] = joined["data"] | {
      k: _both(joined["data"][k], results["data"][k], separator)
      for k, separator in (("note", "; "), ("tokenizer", ", "))
    }
    rename = {
      a: f"{a}@{ends[name]}" if counts[a] > 1 else a for a in results["arms"]
    }
    joined["arms"] |= {rename[a]: arm for a, arm in results["arms"].items()}
    joined["runs"] += [
      run | {"arch": rename[run["arch"]]} for run in results["runs"]
    ]
    made = ("created", "command", "versions", "machine")
    own = [{"name": name} | {k: results[k] for k in made}]
    joined["sources"] += results.get("sources", own)
  return list(conditions.values())


def endings(paths) -> dict[str, str]:
  """The shortest end of each path that no other has: runs/a, runs/b -> a, b."""

  def end(path, size):
    return "/".join(PurePath(path).parts[-size:])

  found = {}
  for path in paths:
    others = [other for other in paths if other != path]
    sizes = range(1, len(PurePath(path).parts) + 1)
    apart = (
      n for n in sizes if end(path, n) not in {end(o, n) for o in others}
    )
    found[path] = end(path, next(apart, 0)) or path
  return found


def _both(a: str, b: str, separator: str) -> str:
  """Two lists written as text, as one without repetition."""
  parts = [p for text in (a, b) for p in text.split(separator) if p]
  return separator.join(dict.fromkeys(parts))


def mismatch(conditions) -> str:
  """Why several conditions are not one ranking; empty for one."""
  if len(conditions) < 2:
    return ""
  named = {
    "data": [c["data"]["name"] for c in conditions],
    "data hash": [c["data"]["hash"] for c in conditions],
  }
  named |= {
    name: [alike(c)[name] for c in conditions] for name in alike(conditions[0])
  }
  differing = [
    f"{name} ({', '.join(dict.fromkeys(map(str, values)))})"
    for name, values in named.items()
    if len(set(values)) > 1
  ]
  return (
    f"These workdirs differ in {', '.join(differing)}: "
    f"{len(conditions)} separate rankings, not to be read as one."
  )


def _mean(values):
  values = [v for v in values if v is not None and math.isfinite(v)]
  return float(np.mean(values)) if values else None


def rows(results) -> list[dict]:
  """The leaderboard, best first: what statistics.rank says and each arm's cost.

  `rank` to `rank_last` is the range of an arm's rank. `scores` maps a seed to
  its score, None where it diverged; `score` is the mean over `seeds`, `gap` the
  difference to the first arm over `gap_seeds` of them. Speed is the mean over
  all seeds that finished.
  """
  check(results)
  scores = {
    arm: {
      run["seed"]: score(results, run) for run in runs_of(results, arm, "final")
    }
    for arm in results["arms"]
  }
  table = []
  for place in statistics.rank(scores, lower=metric(results).lower):
    arm = results["arms"][place.arm]
    finals = [
      run
      for run in runs_of(results, place.arm, "final")
      if score(results, run) is not None
    ]
    row = {
      "rank": place.rank,
      "rank_last": place.last,
      "arch": place.arm,
      "score": place.score.mean if place.score else None,
      "interval": place.score.half if place.score else None,
      "gap": place.gap.mean if place.gap else None,
      "gap_interval": place.gap.half if place.gap else None,
      "gap_seeds": place.gap.count if place.gap else None,
      "seeds": list(place.seeds),
      "scores": {str(s): v for s, v in scores[place.arm].items()},
      "diverged": list(place.diverged),
      "nats": _mean(r["nats"] for r in finals if r["seed"] in place.seeds),
      "params": arm["params"],
      "params_embedding": arm["params_embedding"],
      "tokens_per_parameter": results["tokens"] / arm["params"],
      "flops_per_token": arm["flops_per_token"],
    }
    for context, short in CONTEXTS.items():
      row[f"decode_flops_{short}"] = arm["decode_flops"][context]
      row[f"state_bytes_{short}"] = arm["state_bytes"][context]
    row["tokens_per_second"] = _mean(r["tokens_per_second"] for r in finals)
    row["seconds"] = _mean(r["seconds"] for r in finals)
    files = [r["exported"] for r in finals if r.get("exported")]
    row["bytes_float16"] = 2 * arm["params"]
    row["bytes_exported"] = _mean(f["bytes"] for f in files)
    row["score_exported"] = _mean(f[results["metric"]] for f in files)
    row["lr"], row["lr_at_edge"] = arm["lr"], arm["lr_at_edge"]
    table.append(row)
  return table


def statistics_of(results, arm) -> dict[str, float]:
  """What an arm's finished runs said of themselves at their end, the mean."""
  runs = [
    r["statistics"]
    for r in runs_of(results, arm, "final")
    if r.get("statistics") and score(results, r) is not None
  ]
  names = dict.fromkeys(name for own in runs for name in own)
  return {name: _mean(own.get(name) for own in runs) for name in names}


def curve(results, arm) -> dict[str, np.ndarray] | None:
  """The training loss of an arm, the mean of its finished seeds; None without.

  Loss is in bits per byte (each run's own nats-to-bits-per-byte ratio, which is
  what its tokeniser makes of it), or in nats on a task. A point is the mean of
  the steps since the point before it, at most BINS points in all, which also
  calms the batches' noise. `low` and `high` are the lowest and highest seed; x
  are `tokens`, `flops` (of training, see arch/count.py) and
  `seconds`.
  """
  lines = []
  for run in runs_of(results, arm, "final"):
    if score(results, run) is None:
      continue
    tokens, seconds, loss = (
      np.asarray(run["curve"][key], np.float64)
      for key in ("tokens", "seconds", "loss")
    )
    good = np.isfinite(loss)  # a step that the guard undid left a hole
    if not good.any():
      continue
    if results["metric"] == "bits_per_byte" and run["nats"]:
      loss = loss * run["bits_per_byte"] / run["nats"]
    lines.append((tokens[good], seconds[good], loss[good]))
  if not lines:
    return None

  grid = min((tokens for tokens, _, _ in lines), key=lambda t: t[-1])
  losses = np.stack([np.interp(grid, t, loss) for t, _, loss in lines])
  seconds = np.mean([np.interp(grid, t, s) for t, s, _ in lines], 0)
  size = math.ceil(grid.size / BINS)
  starts = np.arange(0, grid.size, size)
  ends = np.minimum(starts + size, grid.size) - 1
  losses = np.add.reduceat(losses, starts, 1) / (ends - starts + 1)
  return {
    "tokens": grid[ends],
    "flops": grid[ends] * training_flops(results["arms"][arm]),
    "seconds": seconds[ends],
    "loss": losses.mean(0),
    "low": losses.min(0),
    "high": losses.max(0),
  }


def training_flops(arm) -> float:
  """A token's; three times the forward ones where older results do not say."""
  return arm.get("training_flops_per_token", 3 * arm["flops_per_token"])


def curves(results, table) -> dict[str, dict[str, np.ndarray]]:
  """The curve of every arm that has one, best arm first."""
  found = {row["arch"]: curve(results, row["arch"]) for row in table}
  return {arm: c for arm, c in found.items() if c is not None}


def diverged_runs(results) -> list[dict]:
  return [r for r in results["runs"] if score(results, r) is None]


def humanise(value, digits=3, trim=True) -> str:
  """1234567 -> 1.23M; None -> an en dash. `trim` drops zeros at the end."""
  if value is None:
    return "–"
  for bound, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
    # 999.6k would print as 1e+03k: half a unit of the last digit rounds up
    if abs(value) >= bound * (1 - 0.5 * 10**-digits):
      return _significant(value / bound, digits, trim) + suffix
  return _significant(value, digits, trim)


def humanise_bytes(value, trim=True) -> str:
  """Binary units: 65536 -> 64 KiB."""
  if value is None:
    return "–"
  for power, suffix in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
    if abs(value) >= 2**power:
      return f"{_significant(value / 2**power, 3, trim)} {suffix}"
  return f"{value:.0f} B"


def _significant(value, digits, trim=True):
  if value == 0:
    return "0"
  rounded = abs(float(f"{value:.{digits - 1}e}"))  # 0.9999 is 1.00
  places = max(0, digits - 1 - math.floor(math.log10(rounded)))
  text = f"{value:.{places}f}"
  return text.rstrip("0").rstrip(".") if trim and "." in text else text


def decimals(table) -> int:
  """Three places, or four where an interval is too small for three."""
  halves = [
    row[key]
    for row in table
    for key in ("interval", "gap_interval")
    if row[key]
  ]
  smallest = min(halves, default=1)
  return min(4, max(3, 1 - math.floor(math.log10(smallest))))


def plus_minus(value, half, places, signed=False) -> str:
  if value is None:
    return "–"
  text = f"{value:{'+' if signed else ''}.{places}f}"
  return text if half is None else f"{text} ± {half:.{places}f}"


def names(arms) -> str:
  """a; a and b; a, b and c."""
  *head, last = arms
  return f"{', '.join(head)} and {last}" if head else last


def rank_text(row) -> str:
  """1; 2–5 for an arm that may have any of these ranks; an en dash without."""
  if row["rank"] is None:
    return "–"
  ends = dict.fromkeys((row["rank"], row["rank_last"]))
  return "–".join(map(str, ends))


def budget(table) -> str:
  """How long the arms were trained: "0.5 tokens a parameter"."""
  each = [row["tokens_per_parameter"] for row in table]
  ends = dict.fromkeys(f"{value:.2g}" for value in (min(each), max(each)))
  text = " to ".join(ends)
  return f"{text} token{'s' * (text != '1')} a parameter"


def verdict(results, table) -> str:
  """Who leads, by how much, and whether that is noise: one sentence."""
  unit, places = metric(results).name, decimals(table)
  better = "below" if metric(results).lower else "above"
  worse = "above" if metric(results).lower else "below"
  ranked = [row for row in table if row["rank"] is not None]
  if not ranked:
    if any(row["scores"] for row in table):
      return "No arm finished every seed, so nothing is ranked."
    return "No arm has a final run yet, so nothing is ranked."
  first, leaders = ranked[0], [r for r in ranked if r["rank"] == 1]
  seeds = len(first["seeds"])
  value = plus_minus(first["score"], first["interval"], places)
  after = f"after {budget(ranked)}"
  if len(ranked) == 1:
    return (
      f"{first['arch']} scores {value} {unit} {after}, over {seeds} "
      f"seed{'s' * (seeds > 1)}; there is no other arm to hold it against."
    )
  common = min(row["gap_seeds"] or 0 for row in ranked[1:])
  if common < 2:
    best = "lowest" if metric(results).lower else "highest"
    why = "one seed" if common else "arms without a seed in common"
    return (
      f"{first['arch']} has the {best} {unit} ({value}) {after}, but {why} "
      "cannot tell a difference from noise, so that all "
      f"{len(ranked)} arms share rank 1."
    )
  noise = f"the noise of {seeds} seeds and {len(ranked)} arms"
  if len(leaders) == 1:
    second = ranked[1]
    gap = plus_minus(abs(second["gap"]), second["gap_interval"], places)
    return (
      f"{first['arch']} leads with {value} {unit} {after}: {gap} {better} "
      f"{second['arch']}, the next, which is more than {noise}."
    )
  scores = [row["score"] for row in leaders]
  text = (
    f"{names([r['arch'] for r in leaders])} lead together {after} "
    f"({min(scores):.{places}f} to {max(scores):.{places}f} {unit}): no arm is "
    f"better than one of these by more than {noise}"
  )
  rest = [r for r in ranked[1:] if abs(r["gap"]) > r["gap_interval"]]
  if rest:
    gap = plus_minus(abs(rest[0]["gap"]), rest[0]["gap_interval"], places)
    text += (
      f"; {rest[0]['arch']}, the next, is {gap} {unit} {worse} {first['arch']}"
    )
  return text + "."


def text_read(results) -> dict[str, float]:
  """Bytes that a run of each arm read: tokens of its tokeniser's size."""
  if results["metric"] != "bits_per_byte":
    return {}
  found = {}
  for run in results["runs"]:
    # a text of which nothing is left to learn has 0 bits a byte
    if run["phase"] == "final" and score(results, run):
      ratio = run["nats"] / (run["bits_per_byte"] * math.log(2))
      found[run["arch"]] = results["tokens"] * ratio
  return found


def warnings(results, table) -> list[str]:
  """What a reader must know before believing the ranking."""
  found = []
  short = [r for r in table if r["tokens_per_parameter"] < FIRST_LOOK]
  if short:
    least = min(row["tokens_per_parameter"] for row in short)
    least = math.floor(100 * least) / 100  # 4.996 is not 5
    who = (
      "every arm"
      if len(short) == len(table)
      else names([r["arch"] for r in short])
    )
    found.append(
      f"A first look: {who} saw fewer than {FIRST_LOOK} tokens a parameter "
      f"({least:.3g} at the least); longer runs may rank otherwise."
    )
  broken = [row for row in table if row["diverged"]]
  if broken:
    listed = names(
      [
        f"{r['arch']} (seed{'s' * (len(r['diverged']) > 1)} "
        f"{', '.join(map(str, r['diverged']))} of {len(r['scores'])})"
        for r in broken
      ]
    )
    found.append(
      f"Diverged, hence not ranked: {listed}. A mean shown for such an arm is "
      "that of the seeds that survived."
    )
  lost = {}
  for run in diverged_runs(results):
    if run["phase"] == "tune":
      lost.setdefault(run["arch"], []).append(humanise_rate(run["lr"]))
  if lost:
    listed = [f"{arm} ({', '.join(rates)})" for arm, rates in lost.items()]
    found.append(f"Diverged at a rate of the grid: {names(listed)}.")
  extra = {
    row["arch"]: sorted({int(s) for s in row["scores"]} - set(row["seeds"]))
    for row in table
    if row["rank"] is not None
  }
  extra = [
    f"{arm} ({', '.join(map(str, seeds))})"
    for arm, seeds in extra.items()
    if seeds
  ]
  if extra:
    found.append(
      "Seeds that not every arm has are left out of scores and ranks: "
      f"{names(extra)}."
    )
  missing = [row["arch"] for row in table if not row["scores"]]
  if missing:
    found.append(f"No final run: {names(missing)}.")
  edge = [
    f"{row['arch']} ({humanise_rate(row['lr'])})"
    for row in table
    if row["lr_at_edge"]
  ]
  if edge:
    found.append(
      f"The best learning rate lies at the edge of the grid for {names(edge)}: "
      "a wider grid may do better."
    )
  answers = [
    run["positions"] for run in results["runs"] if run["phase"] == "final"
  ]
  answers = min(filter(None, answers), default=math.inf)
  if results["metric"] == "accuracy" and answers < ANSWERS:
    found.append(
      f"A score is of {answers:,.0f} answers, the same for every seed: its own "
      f"standard error, some {0.5 / math.sqrt(answers):.3f}, is in no interval "
      "here. A larger --eval_bytes asks for more."
    )
  text = text_read(results)
  if text and max(text.values()) > 1.05 * min(text.values()):
    listed = [f"{arm} {humanise(size)}" for arm, size in text.items()]
    found.append(
      f"Arms read unequal text at equal tokens: {names(listed)} bytes a run."
    )
  if results["data"].get("note"):
    found.append(f"Data: {results['data']['note']}")
  return found


def humanise_rate(lr) -> str:
  """0.003 -> 3e-3."""
  if lr is None:
    return "–"
  exponent = math.floor(math.log10(lr))
  return f"{_significant(lr / 10**exponent, 3)}e{exponent}"
