"""Reports of a comparison: tables, a page, a picture.

`results` is described in train/report/data.py. Functions that take
`conditions` take one such dict, or the list that `merge` gives for several
workdirs.
"""

import csv
import io
import json
import math
import textwrap
from functools import partial
from pathlib import Path

import numpy as np

from train import workdir
from train.report import data, figures, page
from train.report.data import merge, rows

__all__ = ["gather", "leaderboard", "merge", "read", "rows", "write"]


def read(workdir) -> dict:
  """The results of a workdir. ValueError where there are none that fit."""
  path = Path(workdir) / "results.json"
  if not path.exists():
    raise ValueError(f"no results.json in {workdir}: no comparison ended there")
  try:
    results = json.loads(path.read_text("utf-8"))
  except json.JSONDecodeError as error:
    raise ValueError(f"{path} is not JSON: {error}") from error
  if not isinstance(results, dict):
    raise ValueError(f"{path} is no comparison's")
  if "conditions" in results:
    raise ValueError(
      f"{path} reports several conditions: give the workdirs it came from"
    )
  try:
    return data.check(results)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None


def gather(workdirs, folder) -> list[dict]:
  """The results of several workdirs, as conditions to write into `folder`.

  Raises:
    ValueError: that would overwrite a comparison's own results.
  """
  if not workdirs:
    raise ValueError("no workdirs to report: name them, as in --report=W1,W2")
  named = {str(path): read(path) for path in workdirs}
  why = "none is given"
  if folder is not None:
    reported = Path(folder).resolve() in (Path(w).resolve() for w in workdirs)
    why = (
      f"{folder} holds a run or comparison" if reported or _own(folder) else ""
    )
  if why:
    raise ValueError(f"--report needs a --workdir of its own: {why}")
  return merge(named)


def _own(folder) -> bool:
  """Whether a folder is a comparison's, rather than a report's of several."""
  if (Path(folder) / "config.json").exists():
    return True
  try:
    results = json.loads((Path(folder) / "results.json").read_text("utf-8"))
    return {"conditions", "sources"}.isdisjoint(results)
  except FileNotFoundError:
    return False
  except ValueError:
    return True


def write(conditions, folder) -> dict[str, Path]:
  """Writes results.json, results.csv and report.html; returns their paths.

  One condition is also drawn as comparison.svg, for a README or a paper.
  """
  conditions = _listed(conditions)
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  files = {
    "results.json": json.dumps(plain(_json(conditions)), allow_nan=False)
    + "\n",
    "report.html": page.page(conditions),
  }
  if len(conditions) == 1:
    files["comparison.svg"] = picture(conditions[0])
  files["results.csv"] = _csv(conditions)
  for name, content in files.items():
    workdir.replace(folder / name, content)
  return {name: folder / name for name in files}


def _listed(conditions):
  listed = [conditions] if isinstance(conditions, dict) else list(conditions)
  return [data.check(results) for results in listed]


def plain(value):
  """What JSON can hold: numpy as Python, and None for what is not finite."""
  if isinstance(value, dict):
    return {str(k): plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [plain(v) for v in value]
  if isinstance(value, np.ndarray | np.generic):
    return plain(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def _json(conditions):
  """One condition: itself and its leaderboard. Several: `runs` and
  `leaderboard` of all, each entry with the index of its condition."""
  if len(conditions) == 1:
    return conditions[0] | {"leaderboard": rows(conditions[0])}
  numbered = list(enumerate(conditions))
  return {
    "format": data.FORMAT,
    "warning": data.mismatch(conditions),
    "conditions": [
      {k: v for k, v in c.items() if k != "runs"} for c in conditions
    ],
    "runs": [run | {"condition": i} for i, c in numbered for run in c["runs"]],
    "leaderboard": [
      row | {"condition": i} for i, c in numbered for row in rows(c)
    ],
  }


RUN_COLUMNS = (
  "arch", "phase", "split", "seed", "lr", "diverged", "nats", "tokens",
  "seconds", "tokens_per_second", "compile_seconds",
)  # fmt: skip
ARM_COLUMNS = (
  "rank", "params", "params_embedding", "flops_per_token", "decode_flops_1k",
  "decode_flops_64k", "state_bytes_1k", "state_bytes_64k",
)  # fmt: skip


def _csv(conditions) -> str:
  """A line a run, with its arm's costs and rank beside it."""
  text = io.StringIO()
  table = csv.writer(text, lineterminator="\n")
  table.writerow(("condition", "metric", "score", *RUN_COLUMNS, *ARM_COLUMNS))
  for i, results in enumerate(conditions):
    arms = {row["arch"]: row for row in rows(results)}
    for run in results["runs"]:
      table.writerow(
        [i, results["metric"], data.score(results, run)]
        + [run[column] for column in RUN_COLUMNS]
        + [arms[run["arch"]][column] for column in ARM_COLUMNS]
      )
  return text.getvalue()


COLUMNS, NAME = 120, 20  # widest line, and arm where that leaves too little


def _short(name: str, size: int) -> str:
  """Both ends of a long name: variants of a config differ in the last."""
  head = size // 3
  return (
    name if len(name) <= size else f"{name[:head]}…{name[head + 1 - size :]}"
  )


def leaderboard(conditions) -> str:
  """The table for a terminal, at most COLUMNS wide."""
  conditions = _listed(conditions)
  texts = [_leaderboard(results) for results in conditions]
  if len(conditions) > 1:
    texts = [
      f"{page.condition(c)}\n{text}"
      for c, text in zip(conditions, texts, strict=True)
    ]
    texts.insert(0, data.mismatch(conditions))
  return "\n\n".join(texts)


def _leaderboard(results) -> str:
  table = rows(results)
  places = data.decimals(table)
  fixed = partial(data.humanise, trim=False)
  size = partial(data.humanise_bytes, trim=False)
  groups = {4: "parameters", 6: "FLOPs a token", 9: "state"}
  lines = [
    (
      "rank", "arm", data.metric(results).name, "nats", "total", "embed",
      "fwd", "at 1k", "at 64k", "at 1k", "at 64k", "tok/s", "s",
    ),
  ]  # fmt: skip
  for row in table:
    score = data.plus_minus(row["score"], row["interval"], places)
    lines.append(
      (
        "–" if row["rank"] is None else str(row["rank"]),
        row["arch"],
        score + ("†" if row["diverged"] else ""),
        data.plus_minus(row["nats"], None, 3),
        fixed(row["params"]),
        fixed(row["params_embedding"]),
        fixed(row["flops_per_token"]),
        fixed(row["decode_flops_1k"]),
        fixed(row["decode_flops_64k"]),
        size(row["state_bytes_1k"]).replace(" ", ""),
        size(row["state_bytes_64k"]).replace(" ", ""),
        fixed(row["tokens_per_second"]),
        fixed(row["seconds"]),
      )
    )
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  left = COLUMNS - (sum(widths) - widths[1]) - 2 * (len(widths) - 1)
  widths[1] = min(widths[1], max(left, NAME))
  lines = [(a, _short(b, widths[1]), *rest) for a, b, *rest in lines]
  align = [str.rjust, str.ljust] + [str.rjust] * (len(widths) - 2)
  header, *body = [
    "  ".join(f(t, w) for f, t, w in zip(align, cells, widths, strict=True))
    for cells in lines
  ]
  over = ""
  for column, group in groups.items():
    over = over.ljust(sum(widths[:column]) + 2 * column) + group
  notes = [
    textwrap.fill(note, COLUMNS)
    for note in (data.verdict(results, table), *data.warnings(results, table))
  ]
  rule = "-" * len(header)
  return "\n".join([over, header, rule, *body, rule, *notes])


def picture(results) -> str:
  """The forest plot and the curves over tokens as an SVG, light and dark."""
  table = rows(results)
  drawn = {row["arch"]: data.curve(results, row["arch"]) for row in table}
  drawn = {arm: c for arm, c in drawn.items() if c is not None}
  return figures.picture(results, table, drawn)
