"""What a compiled program, as text, has one device do."""

import math
import re

from arch.count import flops


def expected(step, state, batch) -> int:
  """FLOPs of the products of a training step's gradient on one device.

  Without resets: what they cost is another number of turns of a loop.
  """
  batch = {k: v for k, v in batch.items() if k != "reset"}
  ops = flops(lambda *args: step._gradients(*args, None), state, batch)
  return sum(n for (kind, _), n in ops.items() if kind == "products")


def products(text: str) -> int:
  """FLOPs of one device's products, as often as the loops around them turn.

  A loop whose turns depend on the data counts once.
  """
  bodies, start = {}, None
  for line in text.splitlines():
    head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
    if head:
      start = head[2] if head[1] else start
      lines = bodies[head[2]] = []
    elif line.startswith(" "):
      lines.append(line)
  found = {}

  def turns(line):
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
    if known:
      return int(known[1])
    # the end that a TPU's loop counts to
    test = re.search(r"condition=%?([\w.\-]+)", line)
    ends = re.findall(
      r"= s32\[\]\S* constant\((\d+)\)",
      "\n".join(bodies[test[1]] if test else []),
    )
    return int(ends[0]) if len(ends) == 1 else 1

  def total(name):
    if name not in found:
      found[name] = 0
      shapes, ops = {}, 0
      for line in bodies[name]:
        ops += own(line, shapes)
        names = re.findall(r"(?:calls|to_apply|body)=%?([\w.\-]+)", line)
        ops += sum(map(total, names)) * turns(line)
      found[name] = ops
    return found[name]

  return total(start)


def own(line: str, shapes: dict) -> int:
  """FLOPs of one line, if it is a product; keeps the shape of its answer."""
  name, out, op, rest = re.match(
    r"\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$", line
  ).groups()
  out = shapes[name] = numbers(r"\[([\d,]*)\]", out)
  if op not in ("dot", "convolution"):
    return 0
  left, right = (shapes[n] for n in re.findall(r"%([\w.\-]+)", rest)[:2])
  if op == "dot":
    axes = numbers(r"lhs_contracting_dims=\{([\d,]*)\}", rest)
    return 2 * math.prod(out) * math.prod(left[axis] for axis in axes)
  # a TPU's products are convolutions, axes of a batch spatial ones
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", rest).groups()
  left, right, out = (
    dict(zip(*pair, strict=True))
    for pair in zip(labels, (left, right, out), strict=True)
  )
  ops = 2 * out["b"] * out["f"] * right["i"]
  for i in range(len(out) - 2):
    at = str(i)
    ops *= meetings(left[at], right[at], out[at], *window(rest, i))
  return ops


def meetings(left, right, out, stride, pad, spread, apart) -> int:
  """How often a number of the left one and one of the right are multiplied."""
  reach = spread * (left - 1)
  places = (
    o * stride + k * apart - pad for o in range(out) for k in range(right)
  )
  return sum(0 <= at <= reach and at % spread == 0 for at in places)


def window(text: str, i: int) -> list[int]:
  """Stride, padding in front, lhs_dilate and rhs_dilate of spatial axis i."""
  found = []
  for field, default in (
    ("stride", 1),
    ("pad", 0),
    ("lhs_dilate", 1),
    ("rhs_dilate", 1),
  ):
    given = re.search(rf"[{{ ]{field}=([\dx_\-]+)", text)
    found.append(
      int(given[1].split("x")[i].split("_")[0]) if given else default
    )
  return found


def numbers(pattern: str, text: str) -> list[int]:
  found = re.search(pattern, text)
  return [int(n) for n in found[1].split(",") if n] if found else []


def gathered(text: str) -> list[str]:
  """Shapes of floating numbers that devices give to one another."""
  return re.findall(
    r"= \(?((?:f32|bf16)\S*) (?:all-gather|all-to-all|collective-permute)"
    r"(?:-start)?\(",
    text,
  )
