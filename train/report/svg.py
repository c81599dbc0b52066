"""What figures are drawn with: scales, axes, marks, as SVG text.

An arm has a colour and a marker by its index: classes s0 ... s7, of which STYLE
gives the colours, light, and dark where a browser asks for that. Each further
eight have other shapes in the same colours, every other eight hollow ones, and
lines of another dash. The colours were chosen for a contrast of 3 to their
ground and for the largest smallest distance in OKLab
under normal, protan and deutan sight (Machado et al. 2009). Lengths are pixels,
y grows downwards.
"""

import math
import re
from html import escape
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

SVG = "http://www.w3.org/2000/svg"  # its namespace
SIZE = 12  # pixels of text
# literal colours, since viewers that are no browsers know no variables
STYLE = """
svg { font-size: 12px; font-family: system-ui, -apple-system, "Segoe UI",
  Roboto, Helvetica, Arial, sans-serif }
.s0 { color: #4c53d7 } .s1 { color: #dc7d06 } .s2 { color: #006e7e }
.s3 { color: #c82417 } .s4 { color: #9d83f4 } .s5 { color: #7b1229 }
.s6 { color: #709e98 } .s7 { color: #62008d }
svg text { fill: #1b1d22 } svg .soft { fill: #5b616c }
svg .ground { fill: #ffffff }
svg .halo { fill: none; stroke: #ffffff; stroke-width: 3px }
svg .strong { font-weight: 600 }
svg .value { font-variant-numeric: tabular-nums }
svg .rule { stroke: #dfe2e8; fill: none }
svg .axis { stroke: #5b616c; fill: none }
svg .guide { stroke: #5b616c; stroke-dasharray: 2 3; fill: none }
svg .line { stroke: currentColor; stroke-width: 2; fill: none;
  stroke-linejoin: round; stroke-linecap: round }
svg .thin { stroke-width: 1.4 }
svg .dashed { stroke-dasharray: 6 4 }
svg .dotted { stroke-dasharray: .1 4 }
svg .mixed { stroke-dasharray: 8 4 .1 4 }
svg .leader { stroke: currentColor; stroke-width: 1; opacity: .6; fill: none }
svg .band { fill: currentColor; opacity: .14 }
svg .mark { fill: currentColor; stroke: #ffffff; stroke-width: 1.5 }
svg .hollow { fill: #ffffff; stroke: currentColor; stroke-width: 2 }
svg .seed { fill: none; stroke: currentColor; stroke-width: 1.4; opacity: .75 }
svg .cursor { visibility: hidden }
svg .cross { stroke: #1b1d22; stroke-width: 1.6; fill: none }
svg .ring { stroke: #1b1d22; stroke-width: 1.5; fill: none }
@media (prefers-color-scheme: dark) {
  .s0 { color: #6d72f2 } .s1 { color: #ffc966 } .s2 { color: #0692a6 }
  .s3 { color: #fb7601 } .s4 { color: #d8d3fd } .s5 { color: #e0364d }
  .s6 { color: #88b2a1 } .s7 { color: #ba8dfe }
  svg text { fill: #e9ebef } svg .soft { fill: #a2a9b5 }
  svg .ground, svg .hollow { fill: #16181d }
  svg .halo, svg .mark { stroke: #16181d }
  svg .rule { stroke: #343943 }
  svg .axis, svg .guide { stroke: #a2a9b5 }
  svg .cross, svg .ring { stroke: #e9ebef } }
"""
MARKS = (
  "M-5 0A5 5 0 1 0 5 0A5 5 0 1 0 -5 0Z",
  "M-4.6 -4.6H4.6V4.6H-4.6Z",
  "M0 -6L5.6 4.2H-5.6Z",
  "M0 -6.4L6.4 0L0 6.4L-6.4 0Z",
  "M0 6L5.6 -4.2H-5.6Z",
  "M-2.4 -6.4H2.4V-2.4H6.4V2.4H2.4V6.4H-2.4V2.4H-6.4V-2.4H-2.4Z",
  "M0 -6L5.7 -1.9L3.5 4.9H-3.5L-5.7 -1.9Z",
  "M-6 0L-3 -5.2H3L6 0L3 5.2H-3Z",
)
LINES = ("line", "line dashed", "line dotted", "line mixed")  # of eight arms


class Scale(NamedTuple):
  """Maps low ... high to the pixels start ... end."""

  low: float
  high: float
  start: float
  end: float
  log: bool = False
  binary: bool = False  # ticks at powers of two

  def __call__(self, value):
    f = np.log if self.log else np.asarray
    share = (f(value) - f(self.low)) / (f(self.high) - f(self.low))
    return self.start + share * (self.end - self.start)

  def ticks(self, count) -> list[float]:
    """About `count` round values inside the scale."""
    if self.binary:
      powers = range(
        math.ceil(math.log2(self.low)), math.floor(math.log2(self.high)) + 1
      )
      return [2.0**p for p in powers[:: math.ceil(len(powers) / count) or 1]]
    if self.log and self.high / self.low >= 8:
      decades = range(
        math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1
      )
      for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [s * 10.0**d for d in decades for s in steps]
        ticks = [t for t in ticks if self.low <= t <= self.high]
        if len(ticks) <= count:
          return ticks
      return ticks[:: math.ceil(len(ticks) / count)]
    rough = (self.high - self.low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * 0.999)
    first = math.ceil(self.low / step - 1e-9)
    last = math.floor(self.high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def padded(low, high, share=0.06) -> tuple[float, float]:
  """Widens a range by a share of it at each end; a point by a tenth of it."""
  spread = high - low or abs(high) * 0.1 or 1.0
  middle = (low + high) / 2
  return middle - spread * (0.5 + share), middle + spread * (0.5 + share)


def tick_text(value, ticks) -> str:
  """A linear tick with as many places as the step between ticks needs."""
  if len(ticks) < 2:
    return f"{value:.6g}"
  step = ticks[1] - ticks[0]
  return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def text_width(text, size=SIZE) -> float:
  return 0.6 * size * len(text)


def shorten(text, pixels) -> str:
  fits = max(3, int(pixels / text_width("n")))
  return text if len(text) <= fits else text[: fits - 1] + "…"


def mark(index, x=0.0, y=0.0, scale=1.0) -> str:
  """An arm's marker at x, y."""
  style = "hollow" if index // 8 % 2 else "mark"
  shape = MARKS[(index + 3 * (index // 8)) % 8]
  return (
    f'<path class="{style}" d="{shape}" '
    f'transform="translate({x:.1f} {y:.1f}) scale({scale:g})"/>'
  )


def series(arm, index, *inside) -> str:
  """The group of one arm's shapes, which a click on the page brings forward."""
  return (
    f'<g class="arm s{index % 8}" data-arm="{escape(arm)}">'
    f"<title>{escape(arm)}</title>{''.join(inside)}</g>"
  )


def text(x, y, content, anchor="start", style="") -> str:
  return (
    f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{style}">'
    f"{escape(content)}</text>"
  )


def line(x1, y1, x2, y2, style) -> str:
  return (
    f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" '
    f'x2="{x2:.1f}" y2="{y2:.1f}"/>'
  )


def path(xs, ys) -> str:
  return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True))


def under(xs, ys, top) -> str:
  """The parts of a path that do not lie above `top`."""
  xs, ys = np.asarray(xs, float), np.asarray(ys, float)
  at = np.flatnonzero((ys[:-1] - top) * (ys[1:] - top) < 0)
  share = (top - ys[at]) / (ys[at + 1] - ys[at])
  xs = np.insert(xs, at + 1, xs[at] + share * (xs[at + 1] - xs[at]))
  ys = np.insert(ys, at + 1, top)
  inside = ys >= top
  ends = np.flatnonzero(inside[:-1] != inside[1:]) + 1
  parts = np.split(np.arange(len(ys)), ends)
  return "".join(path(xs[i], ys[i]) for i in parts if inside[i[0]])


def svg(width, height, label, *inside, extra="") -> str:
  return (
    f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
    f'height="{height:g}" role="img" aria-label="{escape(label)}"{extra} '
    f'xmlns="{SVG}">{"".join(inside)}</svg>'
  )


def literal(source: str) -> str:
  """An SVG whose elements say what STYLE says of their classes, the light way,
  for viewers that know no style sheets; where one is known it has the word."""
  rules = {}
  for selector, body in re.findall(
    r"([^{}]+)\{([^{}]*)\}", STYLE.partition("@media")[0]
  ):
    pairs = (pair.partition(":") for pair in body.split(";"))
    rules[selector.split()[-1]] = {
      k.strip(): " ".join(v.split()) for k, _, v in pairs if v
    }
  ElementTree.register_namespace("", SVG)
  root = ElementTree.fromstring(source)

  def write(element, colour):
    names = [element.tag.removeprefix(f"{{{SVG}}}")]
    names += [f".{name}" for name in element.get("class", "").split()]
    own = {}
    for name in names:
      own |= rules.get(name, {})
    colour = own.pop("color", colour)
    for key, value in own.items():
      element.set(key, colour if value == "currentColor" else value)
    for child in element:
      write(child, colour)

  write(root, "")
  return ElementTree.tostring(root, encoding="unicode")


def x_axis(scale, y, top, format_tick, title, count) -> str:
  ticks = scale.ticks(count)
  out = [line(scale.start, y, scale.end, y, "axis")]
  for tick in ticks:
    x = float(scale(tick))
    out.append(line(x, top, x, y, "rule"))
    out.append(
      text(x, y + 16, format_tick(tick, ticks), "middle", "soft value")
    )
  out.append(
    text((scale.start + scale.end) / 2, y + 34, title, "middle", "soft")
  )
  return "".join(out)


def y_axis(scale, left, right, title, count) -> str:
  ticks = scale.ticks(count)
  out = [text(0, scale.end - 10, title, "start", "soft")]
  for tick in ticks:
    y = float(scale(tick))
    out.append(line(left, y, right, y, "rule"))
    out.append(
      text(left - 6, y + 4, tick_text(tick, ticks), "end", "soft value")
    )
  return "".join(out)


def spread(wanted, gap, low, high) -> list[float]:
  """Moves labels apart to at least `gap`, inside low ... high, order kept."""
  if not wanted:
    return []
  ranks = np.argsort(wanted, kind="stable")
  gap = min(gap, (high - low) / max(1, len(wanted) - 1))
  placed = np.asarray(wanted, float)[ranks].clip(low, high)
  for i in range(1, len(placed)):
    placed[i] = max(placed[i], placed[i - 1] + gap)
  placed[-1] = min(placed[-1], high)
  for i in range(len(placed) - 2, -1, -1):
    placed[i] = min(placed[i], placed[i + 1] - gap)
  out = np.empty_like(placed)
  out[ranks] = placed
  return out.tolist()
