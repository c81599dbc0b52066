"""The HTML report: one file that asks nothing of the network.

page.html beside this file is the frame, with its style and its script; this
fills it, one section a condition. Everything that came from results is escaped.
"""

import json
from functools import partial
from html import escape
from pathlib import Path
from string import Template

from train.report import data, figures, origin, tables
from train.report import svg as draw

NARROW, HALF, WIDE = 358, 604, 1248


def page(conditions) -> str:
  """The whole page for a list of results, one for each condition."""
  several = len(conditions) > 1
  head = f"<h1>{escape(title(conditions))}</h1>"
  if several:
    head += f'<p class="verdict">{escape(data.mismatch(conditions))}</p>'
  body = "".join(
    section(results, f"c{i}", several) for i, results in enumerate(conditions)
  )
  return frame(title(conditions), head + body)


def frame(title: str, body: str) -> str:
  """A whole page around some HTML."""
  text = Path(__file__).with_name("page.html").read_text("utf-8")
  return Template(text).substitute(
    title=escape(title), style=draw.STYLE, body=body
  )


def title(conditions) -> str:
  arms = sum(len(c["arms"]) for c in conditions)
  where = data.names(list(dict.fromkeys(c["data"]["name"] for c in conditions)))
  what = "architecture" if arms == 1 else "architectures"
  return f"{arms} {what} on {where}"


def section(results, name, several) -> str:
  table = data.rows(results)
  found = data.warnings(results, table) + origin.warnings(results)
  seeds = max((len(row["scores"]) for row in table), default=0)
  facts = [
    f"{data.humanise(results['tokens'])} training tokens a run",
    f"length {results['length']}",
    f"{seeds} seed{'s' * (seeds != 1)}",
    str(results["created"])[:10],
  ]
  out = []
  if several:
    out.append(f'<h2 class="condition">{escape(condition(results))}</h2>')
  out += [
    f'<p class="verdict">{escape(data.verdict(results, table))}</p>',
    f'<p class="facts">{escape(" · ".join(facts))}</p>',
  ]
  if found:
    items = "".join(f"<li>{escape(line)}</li>" for line in found)
    out.append(f'<ul class="warnings">{items}</ul>')
  out += [
    scores(results, table),
    leaderboard(results, table),
    curves(results, table, name),
    pareto(results, table),
    rates(results),
    diverged(results),
    sizes(results, table),
    told(results, table),
    conditions(results),
  ]
  return "".join(out)


def condition(results) -> str:
  return (
    f"{results['data']['name']}, {data.humanise(results['tokens'])} tokens, "
    f"length {results['length']}, batch {results['batch']}, "
    f"{results['optimizer']}, {data.metric(results).name}"
  )


def heading(text, about) -> str:
  return f'<h2>{escape(text)}</h2><p class="about">{escape(about)}</p>'


def both(figure, wide=WIDE) -> str:
  """A figure at two widths, of which the style shows the one that fits."""
  narrow, wide = figure(NARROW), figure(wide)
  if not narrow:
    return ""
  return (
    f'<figure class="narrow">{narrow}</figure>'
    f'<figure class="wide">{wide}</figure>'
  )


def scores(results, table) -> str:
  figure = both(lambda width: figures.forest(results, table, width))
  if not figure:
    return ""
  about = (
    "Filled marks are means, rings are seeds, lines are 95 % t intervals over "
    "seeds. "
  )
  if len(table) > 1:
    about += (
      "The number is an arm's rank, a range where noise leaves it open. Ranks "
      "come from differences seed by seed, so that lines may overlap where "
      "arms are told apart. The dotted line is the first arm. Click or tap an "
      "arm to follow it through the page. "
    )
  if figures.bound(results, table) is not None:
    about += "An arrow: outside the plot. "
  if any(row["diverged"] for row in table):
    about += "† without its diverged seeds, hence not ranked."
  return heading("Score", about) + figure


def swatch(results, arm) -> str:
  index = figures.order(results)[arm]
  return (
    f'<svg width="14" height="14" viewBox="-7 -7 14 14" class="s{index % 8}" '
    f'aria-hidden="true">{draw.mark(index)}</svg>'
  )


def arm_cell(results, arm, rank=None) -> str:
  number = "" if rank is None else f'<span class="rank">{escape(rank)}</span>'
  return (
    f'<td class="left stick">{number}{swatch(results, arm)}<span class="name" '
    f'data-arm="{escape(arm)}" title="{escape(arm)}">{escape(arm)}</span></td>'
  )


def leaderboard(results, table) -> str:
  unit, places = data.metric(results), data.decimals(table)
  length = data.humanise(results["length"], 4)
  groups = (
    (unit.name, ("95 % interval", "vs first", "nats a target")),
    ("parameters", ("total", "embedding")),
    ("FLOPs a token", (f"forward at {length}", "decode 1k", "decode 64k")),
    ("state", ("at 1k", "at 64k")),
    ("speed", ("tokens/s", "seconds")),
  )
  head = '<tr><th class="left stick" rowspan="2">arm</th>'
  head += "".join(
    f'<th class="group" colspan="{len(columns)}">{escape(group)}</th>'
    for group, columns in groups
  )
  head += "</tr><tr>"
  for _, columns in groups:
    head += "".join(f"<th>{escape(column)}</th>" for column in columns)
  head += "</tr>"

  lines = []
  for row in table:
    own = tables.cells(row, places)
    rank, arm = own.pop("rank"), own.pop("arm")
    own = {k: v for k, v in own.items() if k not in tables.FILES}
    lines.append(
      f"<tr>{arm_cell(results, arm, rank)}"
      + "".join(f"<td>{escape(cell)}</td>" for cell in own.values())
      + "</tr>"
    )
  about = (
    f"{unit.better.capitalize()} {unit.name} is better. The interval beside a "
    f"score is that of one arm. “vs first” is the difference to the first arm, "
    "seed by seed; its interval is one of those that hold for all pairs of "
    "arms at once, and two arms are told apart where it leaves 0 out. An arm's "
    "rank is one more than the number of arms that are told apart from it as "
    "better, to the number of arms less those told apart as worse. Every "
    "interval is that of seeds at one learning rate, which one more seed "
    "chose: what that choice adds, a third where rates score alike, is in "
    "none. Seconds are those of training "
    "one run."
  )
  return heading("Leaderboard", about) + grid(head, lines)


def grid(head, lines) -> str:
  return (
    f'<div class="scroll"><table><thead>{head}</thead>'
    f"<tbody>{''.join(lines)}</tbody></table></div>"
  )


def curves(results, table, name) -> str:
  drawn = data.curves(results, table)
  if not drawn:
    return ""
  buttons = "".join(
    f'<label><input type="radio" name="{name}-axis" value="{axis}"'
    f"{' checked' if axis == 'tokens' else ''}>"
    f"{'FLOPs' if axis == 'flops' else axis}</label>"
    for axis in figures.AXES
  )
  shown = "".join(
    f'<div data-shows="{axis}">'
    + both(lambda width, axis=axis: figures.curves(results, drawn, axis, width))
    + "</div>"
    for axis in figures.AXES
  )
  points = {
    arm: {k: [float(f"{v:.5g}") for v in c[k]] for k in (*figures.AXES, "loss")}
    for arm, c in drawn.items()
  }
  # "</script>" in an arm's name would end the element
  inline = json.dumps(points).replace("<", "\\u003c")
  few = len(drawn) <= figures.CROWD
  about = (
    "Mean of the seeds"
    + (", the band from the lowest to the highest. " if few else ". ")
    + "The training loss is what the optimiser sees, and not the score."
  )
  return (
    heading("Curves", about)
    + f'<div class="axes"><div class="switch">{buttons}</div>{shown}'
    + '<p class="readout">Point at the curves to read them.</p>'
    + f'<script type="application/json">{inline}</script></div>'
  )


def pareto(results, table) -> str:
  if sum(row["score"] is not None for row in table) < 2:
    return ""

  def plot(field, width):
    return figures.pareto(results, table, field, figures.COSTS[field], width)

  drawn = "".join(
    f"<div>{both(partial(plot, field), HALF)}</div>" for field in figures.COSTS
  )
  about = (
    "Score against what it costs. The dotted step joins the arms that no other "
    "arm beats on both. An arrow: outside the plot. A mark without a name had "
    "no room for it: tap it."
  )
  return heading("Trade-offs", about) + f'<div class="pair">{drawn}</div>'


def rates(results) -> str:
  figure = both(lambda width: figures.rates(results, width))
  if not figure:
    return ""
  about = (
    f"Validation {data.metric(results).name} on the tuning seed. The ringed "
    "rate was used for the final runs; a cross diverged, a triangle lies "
    "outside the plot."
  )
  return heading("Learning rates", about) + figure


def diverged(results) -> str:
  runs = data.diverged_runs(results)
  if not runs:
    return ""
  head = (
    '<tr><th class="left stick">arm</th><th class="left">phase</th>'
    "<th>learning rate</th><th>seed</th><th>tokens</th></tr>"
  )
  lines = [
    f"<tr>{arm_cell(results, run['arch'])}"
    f'<td class="left">{escape(run["phase"])}</td>'
    f"<td>{data.humanise_rate(run['lr'])}</td><td>{run['seed']:d}</td>"
    f"<td>{data.humanise(run['tokens'])}</td></tr>"
    for run in runs
  ]
  about = "Their loss stopped being a number. None of them is in any mean."
  return heading("Diverged runs", about) + grid(head, lines)


def sizes(results, table) -> str:
  fields = list(
    dict.fromkeys(k for arm in results["arms"].values() for k in arm["sizes"])
  )
  files = any(row["bytes_exported"] for row in table)
  titles = ("float16", "8 bits", f"{data.metric(results).name} then")
  places = data.decimals(table)
  head = '<tr><th class="left stick">arm</th>' + "".join(
    f"<th>{escape(name)}</th>"
    for name in (
      *fields,
      "parameters",
      "embedding",
      "tokens a parameter",
      "learning rate",
      *(titles if files else ()),
    )
  )
  lines = []
  for row in table:
    arm = results["arms"][row["arch"]]
    cells = [str(arm["sizes"].get(field, "–")) for field in fields]
    cells += [
      f"{row['params']:,}",
      f"{row['params_embedding']:,}",
      data.humanise(row["tokens_per_parameter"]),
      data.humanise_rate(row["lr"]) + (" (edge)" if row["lr_at_edge"] else ""),
    ]
    if files:
      own = tables.cells(row, places)
      cells += [own[name] for name in tables.FILES]
    lines.append(
      f"<tr>{arm_cell(results, row['arch'])}"
      + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
      + "</tr>"
    )
  about = "The widths that were solved for, and what they came to."
  if files:
    about += (
      " Bytes are those of all numbers in float16, and in a file of 8 bits, "
      "entropy-coded; beside them the score of the rounded weights."
    )
  return heading("Sizes", about) + grid(head + "</tr>", lines)


def told(results, table) -> str:
  names, found = tables.told(results, table)
  if not found:
    return ""
  head = '<tr><th class="left stick">arm</th>'
  head += "".join(f"<th>{escape(name)}</th>" for name in names)
  lines = [
    f"<tr>{arm_cell(results, arm)}"
    + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    + "</tr>"
    for arm, *cells in found
  ]
  about = (
    "What these arms log beside their loss, as the load of experts or the "
    "tokens a chunk: the mean over a run's last tenth, and over seeds."
  )
  title = "What arms say of themselves"
  return heading(title, about) + grid(head + "</tr>", lines)


def conditions(results) -> str:
  about = results["data"]
  facts = [
    ("data", about["name"]),
    ("data SHA-256", about["hash"]),
    ("note", about.get("note")),
    ("tokeniser", about["tokenizer"]),
    ("tokens a run", f"{results['tokens']:,}"),
    ("length", results["length"]),
    ("batch", results["batch"]),
    *origin.recipe(results).items(),
  ]
  sources = [
    source
    | {"commit": source["versions"].get("commit")}
    | {
      "versions": {k: v for k, v in source["versions"].items() if k != "commit"}
    }
    for source in results.get("sources", [results])
  ]
  own = ("created", "machine", "versions", "commit", "command")
  alike = [k for k in own if all(s[k] == sources[0][k] for s in sources)]
  facts += [(k, flat(sources[0][k])) for k in alike]
  for source in sources:
    facts += [("workdir", source["name"])] if "name" in source else []
    facts += [(k, flat(source[k])) for k in own if k not in alike]
  items = "".join(
    f"<dt>{escape(key)}</dt><dd>"
    + (
      f"<code>{escape(str(value))}</code>"
      if key in CODE
      else escape(str(value))
    )
    + "</dd>"
    for key, value in facts
    if value not in (None, "", "None")
  )
  return f"<h2>Conditions</h2><dl>{items}</dl>"


CODE = ("command", "data SHA-256")


def flat(value) -> str:
  """A dict of facts on one line."""
  if isinstance(value, dict):
    return ", ".join(f"{k} {v}" for k, v in value.items())
  return str(value)
