"""What each value of `results` must be: see train/report/data.py."""

from train import schema
from train.schema import (
  amount,
  any_,
  flag,
  natural,
  number,
  positive,
  text,
  whole,
)


def loss(x) -> bool:
  """a number, or None where a step was undone"""
  return x is None or type(x) in (int, float)


MADE = {"created": text, "command": text} | dict.fromkeys(
  ("versions", "machine"), {str: any_}
)
ARM = {
  "params": whole,
  "params_embedding": natural,
  "sizes": {str: any_},
  "flops_per_token": positive,
  "training_flops_per_token?": positive,
  "decode_flops": dict.fromkeys(("1024", "65536"), amount),
  "state_bytes": dict.fromkeys(("1024", "65536"), amount),
  "lr": (positive, None),
  "lr_at_edge": flag,
}
TIMES = ("seconds", "tokens_per_second", "compile_seconds")
RUN = {
  "arch": text,
  "seed": natural,
  "lr": positive,
  "phase": ("tune", "final"),
  "split": text,
  "tokens": whole,
  "diverged": flag,
  "nats": (amount, None),
  "positions": (positive, None),
  **dict.fromkeys(TIMES, (amount, None)),
  **dict.fromkeys(("versions?", "machine?"), ({str: any_}, None)),
  "statistics?": {str: number},
  "exported?": ({"bits": text, "bytes": whole}, None),
  "curve": {
    "step": [natural],
    "tokens": [amount],
    "seconds": [amount],
    "loss": [loss],
  },
}
RESULTS = MADE | {
  "data": {
    "name": text,
    "hash": (text, None),
    "note?": (text, None),
    "tokenizer": text,
    "is_task": flag,
  },
  "arms": {str: ARM},
  "runs": [RUN],
  "metric": text,
  "optimizer": text,
  "settings?": [text],
  **dict.fromkeys(("length", "batch", "eval_bytes", "tokens"), whole),
  "sources?": [MADE],
}


def check(results):
  """ValueError, in one line, for the first value that is none of these."""
  demand(results, RESULTS, "")
  for name in results["arms"]:
    if not name.isprintable():
      raise ValueError(f"the name of the arm {name!r} cannot be printed")
  for i, run in enumerate(results["runs"]):
    finish(run, results["metric"], f"runs[{i}]")


def run_of(file) -> dict:
  """The run of a result.json; ValueError for none that is whole."""
  run = schema.load(file, RUN | {"config": {str: any_}})
  finish(run, "accuracy" if "accuracy" in run else "bits_per_byte", "it")
  return run


def demand(value, kind, where):
  found = schema.wrong(value, kind, where)
  if found:
    raise ValueError(found)


def finish(run, score, where):
  """ValueError unless a run that has not diverged has its numbers, and the
  parts of its curve fit."""
  own = (amount, None) if run["diverged"] else amount
  # a run of one step has no tokens a second
  measured = dict.fromkeys((score, "nats", "seconds", "compile_seconds"), own)
  demand(run, measured, where)
  if run.get(
    "exported"
  ):  # rounded weights may overflow where whole ones do not
    own = {score: (amount, None)}
    demand(run["exported"], own, f"{where}.exported")
  lengths = {name: len(part) for name, part in run["curve"].items()}
  if len(set(lengths.values())) > 1:
    raise ValueError(f"{where}.curve has parts of unequal length: {lengths}")
  tokens = run["curve"]["tokens"]
  if any(a >= b for a, b in zip(tokens, tokens[1:], strict=False)):
    raise ValueError(f"{where}.curve.tokens do not rise")
