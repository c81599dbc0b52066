"""The tables of mixers and of the other axes, as text and as a page."""

import re
from html import escape

from train.report.data import humanise, humanise_bytes
from train.report.page import frame

CODE = re.compile(r"\b(transformers|fla|fla-core|flash-linear-attention)\b")


def against(row) -> str:
  """What a mixer was held against, as far as that still holds: the code of a
  library, the equations of its paper, or nothing."""
  if not row["sources"] or any("cases" in what for what in row["wrong"]):
    return "nothing"
  return "code" if CODE.search(" ".join(row["sources"])) else "equations"


def verdict(table) -> str:
  """How many were held against what: a sentence."""
  found = {"code": [], "equations": [], "nothing": []}
  for row in table:
    found[against(row)].append(row["name"])
  wrong = sum(bool(row["wrong"]) for row in table)
  parts = [f"{len(found['code'])} held against the code of others"] * bool(
    found["code"]
  )
  if found["equations"]:
    parts.append(
      f"{len(found['equations'])} against loops over the equations of their "
      f"papers ({', '.join(found['equations'])})"
    )
  if found["nothing"]:
    parts.append(f"{len(found['nothing'])} against nothing that holds today")
  return (
    f"{len(table)} token mixer{'s' * (len(table) != 1)}: {', '.join(parts)}; "
    + (f"{wrong} with something unverified or stale." if wrong else "no gaps.")
  )


def text(table, parts=()) -> str:
  """One line a mixer, and what is not verified; then one a part of the other
  axes."""
  head = (
    f"{'mixer':16} {'recurrence':18} {'FLOPs/tok':>9} {'state 1k':>9} "
    f"{'64k':>9} {'T=2048':>8} {'memory':>9} {'value':>7} {'grad':>7} "
    f"{'decode':>7}  checked against"
  )
  lines = [head]
  for row in table:
    checked = "; ".join(row["sources"]) or "unverified"
    if row["wrong"]:
      checked += f" [{', '.join(row['wrong'])}]"
    lines.append(
      f"{row['name']:16} {row['recurrence']:18} {humanise(row['flops']):>9} "
      + "".join(f"{humanise_bytes(n):>9} " for n in row["state"].values())
      + f"{took(row):>8} {memory(row):>9} "
      + "".join(f"{error(row, k):>7} " for k in ("value", "gradient", "decode"))
      + f" {checked}"
    )
  lines += ["", verdict(table)]
  if parts:
    head = f"{'axis':9} {'part':14} {'cases':>5} {'error':>7} {'TPU':8}"
    lines += ["", f"{head} checked against"]
  for row in parts:
    checked = "; ".join(row["sources"]) or "unverified"
    if row["wrong"]:
      checked += f" [{', '.join(row['wrong'])}]"
    worst = "–" if row["error"] is None else f"{row['error']:.0e}"
    lines.append(
      f"{row['kind']:9} {row['name']:14} {row['cases']:5} {worst:>7} "
      f"{', '.join(row['tpu']) or '–':8} {checked}"
    )
  if any(row["wrong"] for row in [*table, *parts]):
    lines.append("pytest --provenance checks them again")
  return "\n".join(lines)


def took(row) -> str:
  seconds = row["measured"] and row["measured"]["seconds"]
  return f"{1e3 * seconds:.0f} ms" if seconds else "–"


def memory(row) -> str:
  return humanise_bytes(row["measured"] and row["measured"]["memory_bytes"])


def error(row, kind) -> str:
  return f"{row['errors'][kind]:.0e}" if kind in row["errors"] else "–"


def page(table, parts=()) -> str:
  """A card a mixer, and one a part of the other axes; the same on a phone."""
  about = (
    "A mixer is held against other code with the same weights, or, where there "
    "is none, against a loop in float64 over the equations of its paper. "
    "Errors are the largest difference to the reference, in units of its "
    "largest value, in float32, over all cases. State and FLOPs are those of "
    "the config of that name, small, with 256 symbols. Time and memory are of "
    "one mixer alone of width 256, forward and backward, 1 x 2,048 tokens."
  )
  body = (
    "<h1>What each token mixer was checked against</h1>"
    f'<p class="verdict">{escape(verdict(table))}</p>'
    f'<p class="about">{escape(about)}</p>' + "".join(map(card, table))
  )
  if parts:
    body += "<h1>And what the other parts of a model were checked against</h1>"
    body += "".join(map(part, parts))
  return frame("Token mixers", body)


def papers(row) -> str:
  return " ".join(
    f'<a href="{escape(url)}">{escape(url.split("//")[1])}</a>'
    for url in row["papers"]
  )


def part(row) -> str:
  """A card of a file of another axis than the mixers'."""
  worst = "–" if row["error"] is None else f"{row['error']:.0e}"
  facts = {
    "axis": row["kind"],
    "paper": papers(row) or "–",
    "checked against": escape("; ".join(row["sources"]) or "unverified"),
    "largest error": f"{worst} in {row['cases']} cases",
    "compiles for TPU": escape(", ".join(row["tpu"]) or "unverified"),
  }
  return drawn(row, f"{row['kind']}-{row['name']}", facts)


def card(row) -> str:
  links = papers(row)
  errors = ", ".join(f"{k} {v:.0e}" for k, v in row["errors"].items())
  arrays = sum(len(start["ours, theirs"]) for start in row["start"])
  facts = {
    "paper": links or "–",
    "recurrence": escape(row["recurrence"]),
    "checked against": escape("; ".join(row["sources"]) or "unverified"),
    "errors": f"{errors} in {row['cases']} cases" if errors else "unverified",
    "starts as theirs": f"{arrays} arrays, two moments each"
    if arrays
    else "unverified",
    "compiles for TPU": escape(", ".join(row["tpu"]) or "unverified"),
    "FLOPs a token": humanise(row["flops"]),
    "state at 1k, 64k": ", ".join(map(humanise_bytes, row["state"].values())),
    "time, memory": f"{took(row)}, {memory(row)}",
  }
  return drawn(row, row["name"], facts)


def drawn(row, anchor: str, facts: dict) -> str:
  warn = ""
  if row["wrong"]:
    warn = (
      f'<ul class="warnings"><li>{escape(", ".join(row["wrong"]))}</li></ul>'
    )
  items = "".join(f"<dt>{k}</dt><dd>{v}</dd>" for k, v in facts.items())
  return (
    f'<h2 id="{escape(anchor)}">{escape(row["name"])}</h2>'
    f'<p class="about">{escape(row["title"])}</p>{warn}'
    f"<pre><code>{escape(row['formula'])}</code></pre>"
    f"<dl>{items}</dl>"
  )
