"""Which tokenizer.json is an exact byte-level BPE, and what it spells.

Exact is a BPE without prefix and suffix, after one step ByteLevel that adds no
space, among Split, Punctuation and Digits that remove nothing. What would
change a text, or its symbols from one reading to the next, is left out where
that can be done: NFC, truncation, padding, dropout, an unknown symbol,
byte_fallback, templates. The rest is refused, as are symbols that take the
white space beside them. The JSON is anybody's: whatever is wrong in it is a
ValueError of a line.
"""

import functools
import json
import reprlib
from collections.abc import Iterable, Iterator, Mapping

# Where a text may be cut without changing a symbol. GPT-2's split into words
# never joins a line feed or a space that is followed by no white space to what
# precedes it; those of later models join line feeds to punctuation.
SEAM, LINE_SEAM = r"[\n ](?=\S)", r"\n(?=\S)"
NARROW_SEAM, NO_SEAM = r"(?<=[^\W_])\n(?=\S)", r"(?!)"
# Steps before a BPE that cut a text and keep every byte, beside ByteLevel.
CUTS = ("Digits", "Punctuation", "Split")
MOST = 1 << 22  # symbols; published vocabularies have a tenth of it
JSON = {dict: "an object", list: "a list", str: "a string"}


def parsed(text: str) -> dict:
  """The JSON."""
  try:
    spec = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"it is not JSON: {error}") from None
  if not isinstance(spec, dict):
    raise ValueError(f"it is {reprlib.repr(spec)}, expected an object")
  return spec


def field(of: Mapping, name: str, kind: type):
  """of[name]; ValueError unless it is of that kind."""
  if not isinstance(found := of.get(name), kind):
    raise ValueError(
      f"its {name} is {reprlib.repr(found)}, expected {JSON[kind]}"
    )
  return found


def _flat(step, inner: str) -> Iterator[dict]:
  """A step, or those of a Sequence; None is none."""
  if step is None:
    return
  if not isinstance(step, dict):
    raise ValueError(f"a step of it is {reprlib.repr(step)}, no object")
  if field(step, "type", str) != "Sequence":
    yield step
  else:
    for part in field(step, inner, list):
      yield from _flat(part, inner)


def _added(spec: dict) -> list[dict]:
  """Symbols that stand for a text of their own."""
  tokens = field({"added_tokens": [], **spec}, "added_tokens", list)
  for token in tokens:
    if not isinstance(token, dict):
      raise ValueError(f"an added token is {reprlib.repr(token)}, no object")
  return tokens


def steps(spec: dict) -> list[dict]:
  """What cuts a text before the BPE; ValueError unless it stays exact."""
  for step in _flat(spec.get("normalizer"), "normalizers"):
    if step["type"] != "NFC":
      kind = reprlib.repr(step["type"])
      raise ValueError(f"its normaliser {kind} changes the text")
  found = list(_flat(spec.get("pre_tokenizer"), "pretokenizers"))
  levels = 0
  for step in found:
    kind = step["type"]
    if kind == "ByteLevel":
      levels += 1
      if step.get("add_prefix_space") is not False:
        raise ValueError("its step ByteLevel adds a space before a text")
    elif kind not in CUTS:
      raise ValueError(
        f"its step {reprlib.repr(kind)} is not known to keep every byte, as "
        f"ByteLevel, {', '.join(CUTS)} do"
      )
    elif str(step.get("behavior")).lower() == "removed":
      raise ValueError(f"its step {kind} removes text")
  if levels != 1:
    raise ValueError(f"it has {levels} steps ByteLevel, expected one")
  return found


def exact(spec: dict) -> dict:
  """A BPE's JSON without what changes a text or reads it at random."""
  model = field(spec, "model", dict)
  # files of older libraries, GPT-2's among them, do not say the type
  known = {"type": "BPE"} if "merges" in model else {}
  kind = field({**known, **model}, "type", str)
  if kind != "BPE":
    raise ValueError(f"it is of type {reprlib.repr(kind)}, expected BPE")
  for name in ("continuing_subword_prefix", "end_of_word_suffix"):
    if model.get(name):
      raise ValueError(f"its {name} {reprlib.repr(model[name])} is in no text")
  for token in _added(spec):
    if token.get("lstrip") or token.get("rstrip"):
      raise ValueError(
        f"its symbol {reprlib.repr(token.get('content'))} takes the white "
        "space beside it"
      )
  off = dict.fromkeys(
    ("truncation", "padding", "normalizer", "post_processor", "decoder")
  )
  plain = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
  }
  return spec | off | {"model": model | plain}


def pieces(spec: dict, ids: Mapping[str, int], size: int) -> list[bytes]:
  """What each symbol spells."""
  if not ids:
    raise ValueError("its vocabulary is empty")
  most = max(ids.values())
  if most >= MOST:
    raise ValueError(f"its symbol {most} is beyond the {MOST} that it may have")
  added = {token["content"]: token["id"] for token in _added(spec)}
  for token, i in added.items():
    if ids.get(token, i) != i:
      raise ValueError(
        f"its symbol {reprlib.repr(token)} is {i} among the added tokens and "
        f"{ids[token]} in the vocabulary"
      )
  known = letters()
  spelt = [b""] * max(size, 1 + most)
  owner = {}
  for token, i in ids.items():
    if owner.setdefault(i, token) != token:
      both = f"{reprlib.repr(owner[i])} and {reprlib.repr(token)}"
      raise ValueError(f"{both} are both its symbol {i}")
    if token in added:
      spelt[i] = token.encode()
    elif known.keys() >= set(token):
      spelt[i] = bytes(known[c] for c in token)
    else:
      raise ValueError(
        f"its symbol {reprlib.repr(token)} is not spelt in bytes"
      )
  return spelt


def seam(spec: dict, steps: Iterable[dict]) -> str:
  """Where a text may be cut without changing a symbol."""
  words = any(
    step["type"] == "Split"
    or (step["type"] == "ByteLevel" and step.get("use_regex", True))
    for step in steps
  )
  inside = "".join(token["content"][1:] for token in _added(spec))
  if "\n" in inside or not words:
    return NO_SEAM
  if len(steps) > 1:
    return NARROW_SEAM
  return LINE_SEAM if " " in inside else SEAM


@functools.cache
def letters() -> dict[str, int]:
  """Letter -> byte as GPT-2 writes bytes: printable ones are themselves."""
  printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
  rest = [b for b in range(256) if b not in printable]
  return {chr(b): b for b in printable} | {
    chr(256 + i): b for i, b in enumerate(rest)
  }
