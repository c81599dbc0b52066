"""The figures of a report, as SVG text that needs nothing but a browser.

Each function draws at a width in pixels at which its text is meant to be read;
the page keeps a narrow and a wide drawing and shows the one that fits. An arm
keeps one colour and one marker through all of them, by its place in
results["arms"], whatever its rank.
"""

import math
import re

import numpy as np

from train.report import data
from train.report.svg import (
  LINES,
  STYLE,
  Scale,
  line,
  literal,
  mark,
  padded,
  path,
  series,
  shorten,
  spread,
  svg,
  text,
  text_width,
  tick_text,
  under,
  x_axis,
  y_axis,
)

COSTS = {
  "params": "parameters",
  "decode_flops_1k": "decode FLOPs a token at 1k",
  "decode_flops_64k": "decode FLOPs a token at 64k",
  "state_bytes_64k": "state at 64k",
}
PAPER = 900  # pixels wide, of a picture by itself
CROWD = 8  # curves, above which bands and marks at the ends are a blur
AXES = {
  "tokens": "training tokens",
  "flops": "training FLOPs",
  "seconds": "training seconds",
}


def order(results) -> dict[str, int]:
  return {arm: i for i, arm in enumerate(results["arms"])}


def bound(results, table) -> float | None:
  """The worst score that a plot need show, None for all of them.

  One arm far behind would flatten the differences between the others. In bits
  per byte what lies five times the median arm's distance from the best is drawn
  as an arrow at the edge; accuracy has its own bounds.
  """
  scores = [row["score"] for row in table if row["score"] is not None]
  if not data.metric(results).lower or len(scores) < 3:
    return None
  best = min(scores)
  most = best + max(5 * (float(np.median(scores)) - best), 0.02 * best)
  return most if max(scores) > most else None


def forest(results, table, width) -> str:
  """Each arm's mean, its 95 % interval and every seed, by rank."""
  unit, place = data.metric(results), order(results)
  places = data.decimals(table)
  table = [row for row in table if row["score"] is not None]
  if not table:
    return ""
  narrow = width < 600
  longest = max(text_width(row["arch"], 13) for row in table)
  name_at = 16 + max(text_width(data.rank_text(row)) for row in table)
  left = 8 if narrow else min(300, name_at + 16 + longest)
  right = width - 8 if narrow else width - 140
  step, first = (46, 30) if narrow else (30, 14)
  bottom = first + step * len(table) - (8 if narrow else 0)

  most = bound(results, table)
  beyond = [r for r in table if most is not None and r["score"] > most]
  reach = []
  for row in table:
    if row in beyond:
      continue
    reach += [row["scores"][str(seed)] for seed in row["seeds"]]
    reach += [row["score"] - (row["interval"] or 0)]
    reach += [row["score"] + (row["interval"] or 0)]
  x = Scale(*padded(min(reach), max(reach)), left, right)
  out = [
    x_axis(
      x,
      bottom,
      first - 10,
      tick_text,
      f"{unit.name}, {unit.better} is better",
      max(3, int(width / 130)),
    )
  ]
  leader = float(x(table[0]["score"]))
  out.append(line(leader, first - 10, leader, bottom, "guide"))
  for i, row in enumerate(table):
    y = first + step * i + (12 if narrow else 6)
    label = y - 16 if narrow else y + 4
    index = place[row["arch"]]
    shapes = []
    if row in beyond:
      shapes.append(text(right - 16, y + 4, "→", "middle", "soft"))
      shapes.append(mark(index, right - 32, y))
    elif row["interval"] is not None:
      ends = [row["score"] - row["interval"], row["score"] + row["interval"]]
      low, high = map(float, x(ends))
      shapes.append(line(low, y, high, y, "line"))
    if row not in beyond:
      shapes += [
        f'<circle class="seed" cx="{x(row["scores"][str(seed)]):.1f}" '
        f'cy="{y:.1f}" r="3.4"/>'
        for seed in row["seeds"]
      ]
      shapes.append(mark(index, float(x(row["score"])), y))
    room = width - 160 if narrow else left - 12
    name = shorten(row["arch"], room - name_at)
    value = data.plus_minus(row["score"], row["interval"], places)
    if row["diverged"]:
      value += " †"
    shapes += [
      text(8, label, data.rank_text(row), "start", "soft value"),
      text(name_at, label, name, "start", "strong"),
      text(width - 8, label, value, "end", "value"),
    ]
    out.append(series(row["arch"], index, *shapes))
  label = f"Forest plot of {unit.name} with 95 % intervals"
  return svg(width, bottom + 42, label, *out)


def curves(results, drawn, axis, width) -> str:
  """The training loss of every arm against one axis, labelled at its end.

  The first fifth of a run falls from chance; the top of the plot is where the
  arms stand after it, so that the ends can be told apart. More than CROWD
  arms have thinner lines and no bands.
  """
  if not drawn:
    return ""
  place = order(results)
  narrow = width < 600
  height = max(320 if narrow else 420, 82 + 15 * len(drawn))
  column = max(text_width(arm) for arm in drawn)
  column = min(column, 104 if narrow else 190) + 26
  left, right, top, bottom = 40, width - column, 26, height - 42
  low = min(float(c["loss"].min()) for c in drawn.values())
  high = max(
    float(c["loss"][len(c["loss"]) // 5 :].max()) for c in drawn.values()
  )
  low, high = padded(low, high, 0.04)
  end = max(float(c[axis][-1]) for c in drawn.values()) or 1.0
  x, y = Scale(0.0, end, left, right), Scale(low, high, bottom, top)

  unit = "bits per byte" if results["metric"] == "bits_per_byte" else "nats"
  out = [
    y_axis(y, left, right, f"training loss, {unit}", 6),
    x_axis(
      x,
      bottom,
      bottom,
      lambda t, _: data.humanise(t),
      AXES[axis],
      4 if narrow else 8,
    ),
  ]
  labels = spread(
    [float(y(c["loss"][-1])) for c in drawn.values()], 14, top + 4, bottom - 4
  )
  many = len(drawn) > CROWD
  for i, ((arm, c), label) in enumerate(
    zip(drawn.items(), labels, strict=True)
  ):
    index = place[arm]
    xs = x(c[axis])
    around = np.append(y(c["low"]), y(c["high"])[::-1]).clip(top)
    around = path([*xs, *xs[::-1]], around)
    style = LINES[index // 8 % 4] + " thin" * many
    band = "" if many else f'<path class="band" d="{around}Z"/>'
    last_x, last_y = float(xs[-1]), float(y(c["loss"][-1]))
    # ends of many lie on each other: their marks are strewn over the run
    at = len(xs) - 1
    at -= round(0.7 * at * (1 - i / len(drawn))) if many else 0
    out.append(
      series(
        arm,
        index,
        f'{band}<path class="{style}" d="{under(xs, y(c["loss"]), top)}"/>',
        f'<path class="leader" d="M{last_x:.1f} {last_y:.1f}'
        f'L{right + 2:.1f} {label:.1f}H{right + 6:.1f}"/>',
        mark(index, float(xs[at]), float(y(c["loss"][at])), 0.8),
        mark(index, right + 12, label, 0.8),
        text(right + 22, label + 4, shorten(arm, column - 22)),
      )
    )
  # the page reads values off these under a pointer
  extra = (
    f' data-axis="{axis}" data-left="{left}" data-right="{right:.1f}" '
    f'data-end="{end!r}"'
  )
  out.append(f'<line class="guide cursor" y1="{top}" y2="{bottom}"/>')
  label = f"Training loss against {AXES[axis]}"
  return svg(width, height, label, *out, extra=extra)


def rates(results, width) -> str:
  """Score against learning rate, a panel an arm; the chosen rate is ringed."""
  tuned = {}
  for run in results["runs"]:
    if run["phase"] == "tune":
      tuned.setdefault(run["arch"], []).append(
        (run["lr"], data.score(results, run))
      )
  if not tuned:
    return ""
  unit, place = data.metric(results), order(results)
  columns = min(len(tuned), 2 if width < 600 else 4)
  panel = (width - 16 * (columns - 1)) / columns
  height, left, top, bottom = 178, 40, 44, 142

  sign = 1 if unit.lower else -1
  best = {
    arm: min((sign * s for _, s in points if s is not None), default=None)
    for arm, points in tuned.items()
  }
  # one span for every panel, from each arm's own best, and not as long as a bad
  # rate would make it: what lies further is an arrow
  gaps = [
    sign * s - best[arm]
    for arm, points in tuned.items()
    for _, s in points
    if s is not None
  ]
  most = 5 * float(np.median(gaps)) if gaps else 0.0
  span = max((g for g in gaps if g <= most), default=0.0) or 0.01

  all_rates = [lr for points in tuned.values() for lr, _ in points]
  ends = min(all_rates) / 1.4, max(all_rates) * 1.4

  out = []
  for i, (arm, points) in enumerate(tuned.items()):
    index, chosen = place[arm], results["arms"][arm]["lr"]
    x = Scale(*ends, left, panel - 10, log=True)
    start = best[arm] if best[arm] is not None else 0.0
    low, high = sorted((sign * start, sign * (start + span)))
    y = Scale(*padded(low, high, 0.12), bottom, top)
    seen = [
      (lr, s) for lr, s in points if s is not None and sign * s <= start + span
    ]
    points = sorted(points)
    inside = [
      text(0, 14, shorten(arm, panel), "start", "strong"),
    ]
    if results["arms"][arm]["lr_at_edge"]:
      inside.append(text(0, 30, "best at the edge", "start", "soft"))
    ticks = y.ticks(4) if seen else []
    for tick in ticks:
      at = float(y(tick))
      inside.append(line(left, at, panel - 6, at, "rule"))
      inside.append(
        text(left - 6, at + 4, tick_text(tick, ticks), "end", "soft value")
      )
    inside.append(line(left, bottom, panel - 6, bottom, "axis"))
    shown = sorted({lr for lr, _ in points})
    every_other = math.ceil(len(shown) * 34 / (panel - left))
    for lr in shown[::every_other]:
      at = float(x(lr))
      inside.append(line(at, bottom, at, bottom + 4, "axis"))
      inside.append(
        text(at, bottom + 17, data.humanise_rate(lr), "middle", "soft value")
      )
    if seen:
      xs, ys = x(np.array(sorted(seen))[:, 0]), y(np.array(sorted(seen))[:, 1])
      inside.append(f'<path class="line" d="{path(xs, ys)}"/>')
    for lr, s in points:
      at = float(x(lr))
      far = top if unit.lower else bottom - 10
      if s is None:
        inside.append(
          f'<path class="cross" d="M{at - 4:.1f} {top - 4}l8 8m0 -8l-8 8">'
          f"<title>{data.humanise_rate(lr)} diverged</title></path>"
        )
      elif (lr, s) not in seen:
        turn = "" if unit.lower else " rotate(180)"
        inside.append(
          f'<path class="mark" transform="translate({at:.1f} {far + 4:.1f})'
          f'{turn}" d="M0 -6L5 3H-5Z"><title>{data.humanise_rate(lr)}: {s:.3f}'
          "</title></path>"
        )
      else:
        inside.append(mark(index, at, float(y(s)), 0.8))
        if lr == chosen:
          inside.append(
            f'<circle class="ring" cx="{at:.1f}" cy="{y(s):.1f}" r="8"/>'
          )
    row, column = divmod(i, columns)
    shift = f"translate({column * (panel + 16):.1f} {row * height})"
    out.append(f'<g transform="{shift}">{series(arm, index, *inside)}</g>')
  label = f"{unit.name} against the learning rate of each arm"
  return svg(width, height * math.ceil(len(tuned) / columns), label, *out)


def pareto(results, table, field, title, width) -> str:
  """Score against one cost; the dotted step joins what none dominates."""
  unit, place = data.metric(results), order(results)
  in_bytes = field.startswith("state_bytes")
  format_tick = data.humanise_bytes if in_bytes else data.humanise
  rows = [r for r in table if r["score"] is not None and r[field] > 0]
  if not rows:
    return ""
  height, left = 300, 46
  right, top, bottom = width - 10, 26, height - 42
  costs = [float(row[field]) for row in rows]
  scores = [row["score"] for row in rows]
  most = bound(results, rows)
  shown = [s if most is None else min(s, most) for s in scores]
  # arms of nearly one cost stand close together, as they are
  middle = math.sqrt(min(costs) * max(costs))
  half = max(math.sqrt(max(costs) / min(costs)), 1.3) * 1.2
  x = Scale(middle / half, middle * half, left, right, True, in_bytes)
  y = Scale(*padded(min(shown), max(shown), 0.1), bottom, top)
  out = [
    y_axis(y, left, right, f"{unit.name} ({unit.better} is better)", 5),
    x_axis(
      x,
      bottom,
      top,
      lambda t, _: format_tick(t),
      f"{title} (log scale)",
      4 if width < 400 else 6,
    ),
  ]
  sign = 1 if unit.lower else -1
  front, reached = [], math.inf
  for cost, s in sorted(
    zip(costs, shown, strict=True), key=lambda p: (p[0], sign * p[1])
  ):
    if sign * s < reached:
      front.append((float(x(cost)), float(y(s))))
      reached = sign * s
  steps = f"M{front[0][0]:.1f} {front[0][1]:.1f}" + "".join(
    f"H{a:.1f}V{b:.1f}" for a, b in front[1:]
  )
  out.append(f'<path class="guide" d="{steps}H{right:.1f}"/>')

  at = [(float(x(c)), float(y(s))) for c, s in zip(costs, shown, strict=True)]
  labels = [shorten(row["arch"], width * 0.42) for row in rows]
  labels = [
    f"{label} ↑ {s:.2f}" if s > limit else label
    for label, s, limit in zip(labels, scores, shown, strict=True)
  ]
  area = (left + 2, top - 4, right, bottom - 2)
  for row, point, label, box in zip(
    rows, at, labels, place_labels(at, labels, area), strict=True
  ):
    index = place[row["arch"]]
    if box is None:
      continue
    nearest = min(max(point[0], box[0]), box[2]), (box[1] + box[3]) / 2
    where = box[0] + 2, box[3] - 4, label
    # drawn twice, since not every viewer knows paint-order
    shapes = [text(*where, style="halo"), text(*where)]
    if math.dist(nearest, point) > 13:
      shapes.append(line(*point, *nearest, "leader"))
    out.append(series(row["arch"], index, *shapes))
  # marks lie over every label's halo
  for row, point in zip(rows, at, strict=True):
    index = place[row["arch"]]
    out.append(series(row["arch"], index, mark(index, *point)))
  return svg(width, height, f"{unit.name} against {title}", *out)


def place_labels(points, labels, area) -> list[tuple | None]:
  """A box for each label, the nearest that overlaps nothing; None without one.

  The first labels choose first: the best arms keep theirs where many crowd.
  """
  taken = [(px - 7, py - 7, px + 7, py + 7) for px, py in points]

  def free(box):
    left, top, right, bottom = box
    inside = (
      left >= area[0] and top >= area[1]
      and right <= area[2] and bottom <= area[3]
    )  # fmt: skip
    return inside and not any(
      left < t[2] and t[0] < right and top < t[3] and t[1] < bottom
      for t in taken
    )

  boxes = []
  for (px, py), label in zip(points, labels, strict=True):
    w, h = text_width(label) + 4, 16
    near = []
    for away in range(10, 80, 7):
      for turn in range(24):
        # the edge of the box, not its middle, is what lies `away`
        cx = px + math.cos(turn * math.pi / 12) * (away + w / 2)
        cy = py + math.sin(turn * math.pi / 12) * (away + h / 2 - 4)
        near.append((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
    box = next(filter(free, near), None)
    if box is not None:
      taken.append(box)
    boxes.append(box)
  return boxes


def alone(label, *parts) -> str:
  """Figures under each other as one SVG, with its style and its own ground."""
  width, y, inside = 0.0, 24.0, []
  for part in filter(None, parts):
    own = re.search(r'width="([\d.]+)" height="([\d.]+)"', part)
    inside.append(f'<g transform="translate(24 {y:g})">{part}</g>')
    y += float(own[2]) + 24
    width = max(width, float(own[1]) + 48)
  ground = f'<rect class="ground" width="{width:g}" height="{y:g}"/>'
  style = f"<style>{STYLE}</style>"
  return literal(svg(width, y, label, style, ground, *inside)) + "\n"


def picture(results, table) -> str:
  """The forest plot over the curves against tokens."""
  label = f"{data.metric(results).name} of {len(table)} architectures"
  drawn = data.curves(results, table)
  return alone(
    label,
    forest(results, table, PAPER),
    curves(results, drawn, "tokens", PAPER),
  )


def every(results, table) -> dict[str, str]:
  """Each figure of the page by a name, as an SVG of its own."""
  drawn = data.curves(results, table)
  found = {"scores": forest(results, table, PAPER)}
  found |= {f"curves_{x}": curves(results, drawn, x, PAPER) for x in AXES}
  found |= {
    f"score_by_{field}": pareto(results, table, field, title, PAPER * 2 // 3)
    for field, title in COSTS.items()
  }
  found["learning_rates"] = rates(results, PAPER)
  named = data.metric(results).name
  return {k: alone(f"{k}, {named}", v) for k, v in found.items() if v}
