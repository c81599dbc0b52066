"""How the runs of a comparison came about: code, machine, recipe."""

import collections
import re

from train.report.data import humanise_rate, names

UNKNOWN = "unknown"  # the commit of runs that were kept without theirs
FULL = re.compile("([0-9a-f]{7})[0-9a-f]{33}")  # a commit's hash
SCHEDULE = {  # fields of a config's `train`, and how a page says them
  "schedule": "{}",
  "warmup": "{} steps of warm-up",
  "cooldown": "a fall over the last {} of a run",
  "final": "down to {} of the peak",
}
OPTIMISER = {
  "momentum": "momentum {}",
  "beta1": "beta1 {}",
  "beta2": "beta2 {}",
  "epsilon": "epsilon {}",
  "decay": "decay {} of matrices",
  "clip": "gradients clipped to a norm of {}",
}


def facts(results, key: str) -> list[dict]:
  """What every run keeps of its origin, {} where it keeps nothing; of every
  workdir where no run keeps it."""
  runs = results["runs"]
  if not any(key in run for run in runs):
    runs = results.get("sources", [results])
  found = [run.get(key) for run in runs]
  return [its if isinstance(its, dict) else {} for its in found]


def warnings(results) -> list[str]:
  """Says where runs are of several commits, versions or machines."""
  found = []
  versions = facts(results, "versions")
  commits = collections.Counter(
    (its.get("commit") or "outside of git") if its else UNKNOWN
    for its in versions
  )
  if len(commits) > 1 or UNKNOWN in commits:
    listed = [f"{name} ({count})" for name, count in commits.most_common()]
    text = FULL.sub(r"\1", names(listed))
    found.append(f"Trained by this code at the commits {text}.")
  packages = {}
  for its in versions:
    for name in its.keys() - {"commit"}:
      packages.setdefault(name, set()).add(str(its[name]))
  several = [
    f"{name} {names(sorted(packages[name]))}"
    for name in sorted(packages)
    if len(packages[name]) > 1
  ]
  if several:
    found.append(f"Trained under several versions: {'; '.join(several)}.")
  machines = facts(results, "machine")
  if any(machine != machines[0] for machine in machines):
    found.append("Seconds and tokens/s come from more than one machine.")
  return found


def settings(results, field: str) -> str:
  """What a field of the runs' configs is; "1 or 2" where that is several."""
  found = {}
  for run in results["runs"]:
    value = run.get("config", {})
    for key in field.split("."):
      value = value.get(key) if isinstance(value, dict) else None
    if value is not None:
      found[f"{value:g}" if isinstance(value, float) else str(value)] = None
  return " or ".join(found)


def grid(results) -> str:
  """The rates that were tried; by arm where they are not the same for all."""
  rates, arms = {}, {}
  for run in results["runs"]:
    if run["phase"] == "tune":
      rates.setdefault(run["arch"], set()).add(run["lr"])
  for arm, its in rates.items():
    text = ", ".join(map(humanise_rate, sorted(its)))
    arms.setdefault(text, []).append(arm)
  if len(arms) < 2:
    return "".join(arms)
  return "; ".join(f"{text} ({names(its)})" for text, its in arms.items())


def recipe(results) -> dict[str, str]:
  """How the runs were trained and scored, by what their configs say."""
  unused = set() if results["optimizer"] == "muon" else {"momentum"}
  if settings(results, "train.schedule") == "cosine":
    unused.add("cooldown")

  def said(fields):
    found = {k: settings(results, f"train.{k}") for k in fields.keys() - unused}
    return [fields[k].format(found[k]) for k in fields if found.get(k)]

  finals = [run for run in results["runs"] if run["phase"] == "final"]
  splits = dict.fromkeys(str(run["split"]) for run in finals)
  targets = dict.fromkeys(
    f"{run['positions']:,.0f}" for run in finals if run["positions"]
  )
  scored = [
    *splits,
    f"a slice of {results['eval_bytes']:,} "
    + ("tokens" if results["data"]["is_task"] else "bytes"),
    f"{' or '.join(targets)} targets",
  ]
  tuned = [run for run in results["runs"] if run["phase"] == "tune"]
  tuned_on = dict.fromkeys(f"seed {r['seed']} on {r['split']}" for r in tuned)
  found = {
    "scored on": ", ".join(scored if targets else splits),
    "learning rates": ", tried by ".join(
      filter(None, [grid(results), *tuned_on])
    ),
    "schedule": ", ".join(said(SCHEDULE)),
    "optimiser": ", ".join([results["optimizer"], *said(OPTIMISER)]),
    "compute dtype": settings(results, "model.dtype"),
  }
  if results.get("settings"):
    found["set for every arm"] = ", ".join(results["settings"])
  tpu = any(its.get("platform") == "tpu" for its in facts(results, "machine"))
  if tpu and "float32" in found["compute dtype"]:
    found["compute dtype"] += (
      "; a TPU multiplies float32 matrices as bfloat16 and adds in float32, "
      "but for the chunks of recurrences, the experts' router and Hyena's "
      "filter"
    )
  return found
