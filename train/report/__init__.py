"""Reports of a comparison: tables, a page, a picture.

`results` is described in train/report/data.py. Functions that take
`conditions` take one such dict, or the list that `merge` gives for several
workdirs.
"""

import json
import math
from pathlib import Path

import numpy as np

from train import schema, workdir
from train.report import data, figures, kinds, page, tables
from train.report.data import merge, rows
from train.schema import any_

__all__ = ["gather", "leaderboard", "merge", "read", "rows", "write"]


def read(workdir) -> dict:
  """The results of a workdir. ValueError where there are none that fit."""
  path = Path(workdir) / "results.json"
  if not path.exists():
    raise ValueError(f"no results.json in {workdir}: no comparison ended there")
  results = schema.load(path)
  if not isinstance(results, dict):
    raise ValueError(f"{path} is no comparison's")
  if "conditions" in results:
    raise ValueError(
      f"{path} reports several conditions: give the workdirs it came from"
    )
  try:
    if results.get("format") == data.FORMAT:
      kinds.check(results)
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
  if len({Path(path).resolve() for path in workdirs}) < len(workdirs):
    raise ValueError(
      f"--report={','.join(map(str, workdirs))} names a workdir twice"
    )
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
    results = schema.load(Path(folder) / "results.json", {str: any_})
    return {"conditions", "sources"}.isdisjoint(results)
  except FileNotFoundError:
    return False
  except ValueError:
    return True


def write(conditions, folder, pictures: bool = False) -> dict[str, Path]:
  """Writes what a comparison found, for people and for programs; returns the
  paths: results.json (all of it), results.csv (a line a run), report.html,
  leaderboard.csv, .md and .tex.

  One condition is also drawn as comparison.svg, for a README or a paper.

  Args:
    pictures: whether comparison.svg becomes a PNG and a PDF as well, and every
      figure of the page all three, in figures/.
  """
  conditions = _listed(conditions)
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  files = {
    "results.json": json.dumps(plain(_json(conditions)), allow_nan=False)
    + "\n",
    "report.html": page.page(conditions),
  }
  drawn = {}
  if len(conditions) == 1:
    drawn["comparison.svg"] = figures.picture(
      conditions[0], rows(conditions[0])
    )
  files |= drawn
  files["results.csv"] = tables.runs(conditions)
  files["leaderboard.csv"] = tables.arms(conditions)
  files["leaderboard.md"] = (
    _each(conditions, tables.markdown, "**{}**\n") + "\n"
  )
  files["leaderboard.tex"] = _each(conditions, tables.latex, "% {}") + "\n"
  if pictures:
    (folder / "figures").mkdir(exist_ok=True)
    for i, results in enumerate(conditions, 1):
      which = f"{i}_" if len(conditions) > 1 else ""
      for name, svg in figures.every(results, rows(results)).items():
        drawn[f"figures/{which}{name}.svg"] = svg
    files |= drawn
    convert = converter()
    for name, svg in drawn.items():
      files[name.replace(".svg", ".png")] = convert.svg_to_png(svg, scale=2)
      files[name.replace(".svg", ".pdf")] = convert.svg_to_pdf(svg)
  for name, content in files.items():
    workdir.replace(folder / name, content)
  # a folder stands for what is in it
  return {name.split("/")[0]: folder / name.split("/")[0] for name in files}


def converter():
  """What makes a PNG and a PDF of an SVG, without a browser.

  Raises:
    ValueError: it is not installed.
  """
  try:
    import vl_convert
  except ImportError:
    raise ValueError(
      "--figures needs a library that draws: pip install vl-convert-python, "
      "or this project's .[figures]"
    ) from None
  return vl_convert


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


def leaderboard(conditions) -> str:
  """The tables for a terminal, at most 80 columns wide."""
  return _each(conditions, tables.text)


def _each(conditions, table, over="{}") -> str:
  """A table of each condition, under its name where there are several.

  Args:
    over: the line of a name.
  """
  conditions = _listed(conditions)
  texts = [table(results) for results in conditions]
  if len(conditions) > 1:
    texts = [
      f"{over.format(page.condition(c))}\n{text}"
      for c, text in zip(conditions, texts, strict=True)
    ]
    texts.insert(0, over.format(data.mismatch(conditions)))
  return "\n\n".join(texts)
