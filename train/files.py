"""Files as documents: plain text, a line of JSON each, a row of Parquet each.

  .jsonl    an object a line; a document is the string in its field
  .parquet  a document is the string in a row's column; needs pyarrow
  others    one document, the file

.gz and .xz are unpacked. Errors: ValueError for a file that cannot be used,
OSError for one that cannot be opened.
"""

import codecs
import contextlib
import gzip
import json
import lzma
import os
import pathlib
import textwrap
import zlib
from collections.abc import Iterable, Iterator

OPEN = {".gz": gzip.open, ".xz": lzma.open}
ENDINGS = (".txt", ".jsonl", ".parquet")
FIELD = "text"
PIECE = 1 << 24  # bytes; decoded, a symbol may take four times its memory


def unpacked(path: pathlib.Path) -> pathlib.Path:
  """The path without .gz or .xz."""
  return path.with_suffix("") if path.suffix in OPEN else path


def find(path: pathlib.Path) -> pathlib.Path:
  """path, path.gz or path.xz, whichever is there."""
  for ending in ("", *OPEN):
    file = path.with_name(path.name + ending)
    if file.is_file():
      return file
  if path.exists():
    raise ValueError(f"{path} is no regular file: write it to one first")
  hint = "; after a comma field=NAME or valid=test may follow"
  raise ValueError(
    f"{path}: no such file or folder (nor .gz, .xz)" + hint * ("," in path.name)
  )


def within(folder: pathlib.Path, plain: bool) -> list[pathlib.Path]:
  """Every file of a folder that can be read, but for hidden ones.

  Args:
    plain: whatever its ending.
  """
  found = []
  for place, folders, names in os.walk(folder, onerror=_stop):
    folders[:] = [name for name in folders if name[0] != "."]
    found += [pathlib.Path(place, name) for name in names if name[0] != "."]
  found = sorted(
    path
    for path in found
    if (plain or unpacked(path).suffix in ENDINGS) and path.is_file()
  )
  known = set(found)
  return [p for p in found if p == unpacked(p) or unpacked(p) not in known]


def _stop(error: OSError):
  raise error


def documents(
  path: pathlib.Path, field: str | None, plain: bool
) -> list[bytes]:
  """The documents of a file.

  Args:
    field: of a line or row; "text" without.
    plain: the file is one document, whatever its bytes.
  """
  kind = "" if plain else unpacked(path).suffix
  if kind == ".jsonl":
    return list(_lines(path, field or FIELD))
  if kind == ".parquet":
    return list(_rows(path, field or FIELD))
  if field:
    raise ValueError(
      f"{path} has no field {field!r}: it is not .jsonl, .parquet"
    )
  with _opened(path) as stream:
    text = stream.read()
  if not plain:
    _check(path, text)
  return [text]


@contextlib.contextmanager
def _opened(path: pathlib.Path):
  try:
    with OPEN.get(path.suffix, open)(path, "rb") as stream:
      yield stream
  except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError) as error:
    raise ValueError(f"{path} cannot be unpacked: {error}") from error


def _check(path: pathlib.Path, text: bytes):
  """ValueError for what is no text."""
  advice = f"bytes:{path} takes any bytes"
  decoder = codecs.getincrementaldecoder("utf-8")()
  try:
    for at in range(0, len(text), PIECE):
      decoder.decode(text[at : at + PIECE], at + PIECE >= len(text))
  except UnicodeDecodeError:
    raise ValueError(f"{_not_utf8(path, text)}, or {advice}") from None
  if nul := text.count(0):
    raise ValueError(
      f"{path} is no text: {_share(nul, text)} are NUL; name a text in UTF-8, "
      f"or {advice}"
    )


def _share(part: int, text: bytes) -> str:
  size = len(text)
  return f"{part:,} of its {size:,} bytes, {part / size:.2%},"


def _not_utf8(path: pathlib.Path, text: bytes) -> str:
  try:
    text.decode()
  except UnicodeDecodeError as error:
    if error.end == len(text) and "end of data" in error.reason:
      return (
        f"{path} ends inside a symbol of UTF-8: cut it at {error.start} bytes "
        f"(head -c {error.start})"
      )
    wrong = len(text) - len(text.decode(errors="ignore").encode())
    return (
      f"{path}: {_share(wrong, text)} are not UTF-8 (the first is byte "
      f"{error.start}, 0x{text[error.start]:02x}); convert it (iconv -t utf-8)"
    )


def _lines(path: pathlib.Path, field: str) -> Iterator[bytes]:
  with _opened(path) as stream:
    for number, line in enumerate(stream, 1):
      where = f"{path}, line {number}"
      if not line.strip():
        continue
      try:
        found = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
      except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from None
      if not isinstance(found, dict):
        raise ValueError(f"{where} is no object with a field {field!r}")
      if field not in found:
        raise ValueError(_missing(where, field, found))
      yield _encoded(where, field, found[field])


def _rows(path: pathlib.Path, field: str) -> Iterator[bytes]:
  try:
    import pyarrow
    from pyarrow import parquet
  except ModuleNotFoundError:
    raise ValueError(f"{path} needs pyarrow: pip install pyarrow") from None
  try:
    with parquet.ParquetFile(path, page_checksum_verification=True) as file:
      columns = file.schema_arrow.names
      if field not in columns:
        raise ValueError(_missing(path, field, columns))
      number = 0
      for batch in file.iter_batches(columns=[field]):
        for value in batch.column(0).to_pylist():
          number += 1
          yield _encoded(f"{path}, row {number}", field, value)
  except (pyarrow.ArrowException, UnicodeError, OSError) as error:
    why = textwrap.shorten(str(error), 300)
    raise ValueError(f"{path} cannot be read as Parquet: {why}") from error


def _missing(where, field: str, known: Iterable[str]) -> str:
  names = textwrap.shorten(", ".join(known), 300) or "none"
  return f"{where} has no field {field!r}: name one as ,field=NAME ({names})"


def _encoded(where: str, field: str, value) -> bytes:
  if not isinstance(value, str):
    kind = "null" if value is None else f"of type {type(value).__name__}"
    raise ValueError(
      f"{where}: its field {field!r} is {kind}, expected a string"
    )
  try:
    return value.encode()
  except UnicodeEncodeError as error:
    raise ValueError(f"{where}: its field {field!r}: {error}") from None
