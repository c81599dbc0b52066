"""The leaderboard for a terminal, a README, a paper and a program."""

import csv
import io
import textwrap
from functools import partial

from train.progress import short
from train.report import data, origin

COLUMNS, NAME = 80, 12  # widest line, and arm where that leaves too little
PAIRED = (
  "Ranks are ranges that hold for all arms at once, 95 times in 100. They "
  "come from differences seed by seed, so that intervals of scores may overlap "
  "where arms are told apart."
)
RUN_COLUMNS = (
  "arch", "phase", "split", "seed", "lr", "diverged", "nats", "tokens",
  "seconds", "tokens_per_second", "compile_seconds",
)  # fmt: skip
ARM_COLUMNS = (
  "rank", "rank_last", "params", "params_embedding", "flops_per_token",
  "decode_flops_1k", "decode_flops_64k", "state_bytes_1k", "state_bytes_64k",
  "bytes_float16", "bytes_exported", "score_exported",
)  # fmt: skip


FILES = ("float16", "exported", "exported_score")  # cells of an arm's file


def cells(row, places: int) -> dict[str, str]:
  """An arm's line of any table for people."""
  fixed = partial(data.humanise, trim=False)
  size = partial(data.humanise_bytes, trim=False)
  dagger = " †" if row["diverged"] and row["score"] is not None else ""
  gap = row["gap"], row["gap_interval"]
  return {
    "rank": data.rank_text(row),
    "arm": row["arch"],
    "score": data.plus_minus(row["score"], row["interval"], places) + dagger,
    "gap": data.plus_minus(*gap, places, signed=True),
    "nats": data.plus_minus(row["nats"], None, 3),
    "params": fixed(row["params"]),
    "embed": fixed(row["params_embedding"]),
    "forward": fixed(row["flops_per_token"]),
    "decode_1k": fixed(row["decode_flops_1k"]),
    "decode_64k": fixed(row["decode_flops_64k"]),
    "state_1k": size(row["state_bytes_1k"]),
    "state_64k": size(row["state_bytes_64k"]),
    "speed": fixed(row["tokens_per_second"]),
    "seconds": fixed(row["seconds"]),
    "float16": size(row["bytes_float16"]),
    "exported": size(row["bytes_exported"]),
    "exported_score": data.plus_minus(row["score_exported"], None, places),
  }


def told(results, table) -> tuple[list[str], list[list[str]]]:
  """What arms say of themselves: titles, and a line an arm that says some."""
  found = {r["arch"]: data.statistics_of(results, r["arch"]) for r in table}
  names = list(dict.fromkeys(name for own in found.values() for name in own))
  lines = [
    [arm, *(data.humanise(own.get(name)) for name in names)]
    for arm, own in found.items()
    if own
  ]
  return [name.replace("_", " ") for name in names], lines


def notes(results, table) -> list[str]:
  """What a reader of the table must know."""
  told = [row for row in table if row["rank"] is not None and row["seeds"][1:]]
  return [
    data.verdict(results, table),
    *([PAIRED] if told[1:] else []),
    *data.warnings(results, table),
    *origin.warnings(results),
  ]


def _aligned(table, titles: dict[str, str], groups=()) -> list[str]:
  """The columns `titles` of a table, at most COLUMNS wide, between rules.

  Args:
    groups: (column, text) that stands above the titles from a column on.
  """
  lines = [list(titles.values())]
  lines += [[row[key] for key in titles] for row in table]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  at = list(titles).index("arm")
  left = COLUMNS - (sum(widths) - widths[at]) - 2 * (len(widths) - 1)
  widths[at] = min(widths[at], max(left, NAME))
  text = [
    "  ".join(
      short(cell, width).ljust(width) if i == at else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(line, widths, strict=True))
    )
    for line in lines
  ]
  over = ""
  for key, group in groups:
    column = list(titles).index(key)
    over = over.ljust(sum(widths[:column]) + 2 * column) + group
  rule = "-" * len(text[0])
  return [*filter(None, [over]), text[0], rule, *text[1:], rule]


def text(results) -> str:
  """Scores, costs and notes, at most COLUMNS wide."""
  table = data.rows(results)
  places = data.decimals(table)
  shown = [cells(row, places) for row in table]
  for row in shown:
    row |= {k: row[k].replace(" ", "") for k in ("state_1k", "state_64k")}
  scores = {
    "rank": "rank",
    "arm": "arm",
    "score": data.metric(results).name,
    "gap": "vs first",
    "nats": "nats",
    "seconds": "s",
  }
  costs = {
    "arm": "arm",
    "params": "total",
    "embed": "embed",
    "forward": "fwd",
    "decode_1k": "at 1k",
    "decode_64k": "at 64k",
    "state_1k": "at 1k",
    "state_64k": "at 64k",
    "speed": "tok/s",
  }
  groups = [
    ("params", "parameters"),
    ("forward", "FLOPs a token"),
    ("state_1k", "state"),
  ]
  said = notes(results, table)
  lines = _aligned(shown, scores)
  lines += [textwrap.fill(note, COLUMNS) for note in said[:2]]
  lines += ["", *_aligned(shown, costs, groups)]
  if any(row["bytes_exported"] for row in table):
    files = {"arm": "arm", "float16": "float16", "exported": "8 bits"}
    files["exported_score"] = f"{data.metric(results).name} then"
    lines += ["", *_aligned(shown, files, [("float16", "a file")])]
  names, own = told(results, table)
  for arm, *values in own:
    pairs = zip(names, values, strict=True)
    parts = ", ".join(f"{k} {v}" for k, v in pairs if v != "–")
    lines += [textwrap.fill(f"{arm}: {parts}", COLUMNS)]
  lines += [textwrap.fill(note, COLUMNS) for note in said[2:]]
  return "\n".join(lines)


PAPER = {
  "rank": "rank",
  "arm": "arm",
  "score": None,  # the metric's name
  "gap": "vs first",
  "params": "parameters",
  "forward": "FLOPs a token",
  "decode_64k": "decoding at 64k",
  "state_64k": "state at 64k",
  "speed": "tokens/s",
}


def _paper(results):
  """Titles and lines of a table for a page."""
  table = data.rows(results)
  places = data.decimals(table)
  titles = PAPER | {"score": data.metric(results).name}
  shown = [cells(row, places) for row in table]
  return list(titles.values()), [[row[k] for k in titles] for row in shown]


def markdown(results) -> str:
  """A table for a README, with its notes below."""
  titles, lines = _paper(results)

  def line(parts):
    return "| " + " | ".join(part.replace("|", "\\|") for part in parts) + " |"

  rule = ["---:", "---"] + ["---:"] * (len(titles) - 2)
  said = notes(results, data.rows(results))
  return "\n".join(
    [line(titles), line(rule), *map(line, lines), *(f"\n{s}" for s in said)]
  )


ESCAPES = {
  "\\": r"\textbackslash{}", "~": r"\textasciitilde{}",
  "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--", "†": r"$\dagger$",
  **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip


def latex(results) -> str:
  """A tabular for a paper; its notes are comments."""
  titles, lines = _paper(results)

  def line(parts):
    cells_ = ("".join(ESCAPES.get(c, c) for c in part) for part in parts)
    return " & ".join(cells_) + r" \\"

  said = notes(results, data.rows(results))
  return "\n".join(
    [
      r"% \usepackage{booktabs}",
      *(f"% {' '.join(note.split())}" for note in said),
      rf"\begin{{tabular}}{{rl{'r' * (len(titles) - 2)}}}",
      r"\toprule",
      line(titles),
      r"\midrule",
      *map(line, lines),
      r"\bottomrule",
      r"\end{tabular}",
    ]
  )


def _csv(lines) -> str:
  text_ = io.StringIO()
  csv.writer(text_, lineterminator="\n").writerows(lines)
  return text_.getvalue()


def runs(conditions) -> str:
  """CSV, a line a run, with its arm's costs and rank beside it."""
  lines = [("condition", "metric", "score", *RUN_COLUMNS, *ARM_COLUMNS)]
  for i, results in enumerate(conditions):
    arms = {row["arch"]: row for row in data.rows(results)}
    lines += [
      [i, results["metric"], data.score(results, run)]
      + [run[column] for column in RUN_COLUMNS]
      + [arms[run["arch"]][column] for column in ARM_COLUMNS]
      for run in results["runs"]
    ]
  return _csv(lines)


def arms(conditions) -> str:
  """CSV, a line an arm, with its intervals; lists of seeds with spaces."""
  lines = []
  for i, results in enumerate(conditions):
    for row in data.rows(results):
      row = {"condition": i, "metric": results["metric"]} | row
      del row["scores"]
      row |= {k: " ".join(map(str, row[k])) for k in ("seeds", "diverged")}
      lines += (
        [list(row.values())] if lines else [list(row), list(row.values())]
      )
  return _csv(lines)
