"""What JSON from elsewhere must hold: kinds of values.

A kind is one of

  a predicate of this file: whole, natural, positive, amount, flag, text, any_
  a value, None among them: that value alone
  a tuple of kinds: any of them
  [kind]: a list of such
  {str: kind}: an object of such, but for names that it has besides
  {"a": kind, "b?": kind}: an object with a, perhaps with b, and others
"""

import json
from pathlib import Path

# floats are used as float32, and float64 holds whole numbers up to this
SMALLEST, LARGEST, LARGEST_WHOLE = 1.2e-38, 3.4e38, 2**53
DEPTH = 64  # of objects and lists in each other


def whole(x) -> bool:
  """a whole number above 0"""
  return natural(x) and x > 0


def natural(x) -> bool:
  """a whole number of 0 or more"""
  return type(x) is int and 0 <= x <= LARGEST_WHOLE


def positive(x) -> bool:
  """a finite number above 0, and in float32's range"""
  return amount(x) and x > SMALLEST


def amount(x) -> bool:
  """a finite number of 0 or more"""
  return number(x) and x >= 0


def number(x) -> bool:
  """a finite number"""
  return type(x) in (int, float) and -LARGEST < x < LARGEST


def flag(x) -> bool:
  """true or false"""
  return type(x) is bool


def text(x) -> bool:
  """a string"""
  return type(x) is str


def any_(x) -> bool:
  """anything"""
  return True


def means(kind) -> str:
  """A kind in words."""
  match kind:
    case tuple():
      return " or ".join(map(means, kind))
    case [one]:
      return f"a list, each {means(one)}"
    case dict():
      return "an object"
  return kind.__doc__ if callable(kind) else repr(kind)


def wrong(value, kind, where: str) -> str | None:
  """What in a value of JSON is of another kind; None where nothing is."""
  if isinstance(kind, tuple):
    if any(wrong(value, one, where) is None for one in kind):
      return None
    alike = (k for k in kind if type(k) is type(value) in (list, dict))
    kind = next(alike, kind)  # tells where in the value it is
  match kind, value:
    case list([one]), list():
      parts = [(f"{where}[{i}]", v, one) for i, v in enumerate(value)]
    case dict(), dict():
      own = {k: one for k, one in kind.items() if k is not str}
      lacking = [k for k in own if k not in value and k[-1:] != "?"]
      if lacking:
        return f"{where or 'it'} lacks {', '.join(lacking)}"
      kinds = dict.fromkeys(value, kind[str]) if str in kind else {}
      kinds |= {k.removesuffix("?"): one for k, one in own.items()}
      dot = f"{where}." if where else ""
      parts = [(f"{dot}{k}", value[k], kinds[k]) for k in kinds if k in value]
    case _:
      if callable(kind):
        fits = kind(value)
      else:
        fits = type(value) is type(kind) and value == kind
      if fits:
        return None
      return f"{where or 'it'} is {shown(value)}, not {means(kind)}"
  found = (wrong(v, one, place) for place, v, one in parts)
  return next(filter(None, found), None)


def shown(value) -> str:
  """A value, cut where it is long."""
  found = repr(value)
  return found if len(found) <= 60 else f"{found[:59]}…"


def parse(given: str | bytes, kind, where):
  """JSON of a kind.

  Raises:
    ValueError: it is none, or of another kind; one line names the place.
  """
  try:
    value = json.loads(given)
    if depth(value) > DEPTH:
      raise RecursionError
  except RecursionError:
    raise ValueError(f"{where}: more than {DEPTH} levels of JSON") from None
  except ValueError as e:  # of JSON, or of UTF-8
    raise ValueError(f"{where} is not JSON: {e}") from None
  found = wrong(value, kind, "")
  if found:
    raise ValueError(f"{where}: {found}")
  return value


def load(file, kind=any_):
  """A file's JSON; errors as of `parse`, or that there is no such file."""
  return parse(Path(file).read_bytes(), kind, file)


def depth(value) -> int:
  """How deep objects and lists lie in each other."""
  level, found = [value], 0
  while level := [x for x in level if isinstance(x, dict | list)]:
    parts = (x.values() if isinstance(x, dict) else x for x in level)
    level, found = [x for part in parts for x in part], found + 1
  return found
