"""Files as documents: plain text, a line of JSON each, a row of Parquet each.

  .jsonl    an object a line; a document is the string in its field
  .parquet  a document is the string in a row's column; needs pyarrow
  others    one document, the file

.gz and .xz are unpacked. A file is read in pieces, from its start or from where
reading stopped. Errors: ValueError for a file that cannot be read or used,
OSError for a folder that cannot be opened.
"""

import codecs
import contextlib
import gzip
import itertools
import json
import lzma
import os
import pathlib
import textwrap
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

OPEN = {".gz": gzip.open, ".xz": lzma.open}
ENDINGS = (".txt", ".jsonl", ".parquet")
FIELD = "text"
PIECE = 1 << 24  # bytes; decoded, a symbol may take four times its memory
ROWS = 1 << 10  # that are read at once


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


class Piece(NamedTuple):
  """A part of a document.

  Attributes:
    text: its bytes.
    last: whether the document ends with it.
    place: where to read on after it: bytes, unpacked, and documents (of a line,
      lines).
    done: how many bytes of the file were read for it, packed as they are.
  """

  text: bytes
  last: bool
  place: tuple[int, int]
  done: int


def read(
  path: pathlib.Path,
  field: str | None,
  plain: bool,
  place: tuple[int, int] = (0, 0),
) -> Iterator[Piece]:
  """The documents of a file, in pieces of about PIECE bytes.

  Args:
    field: of a line or row; "text" without.
    plain: the file is one document, whatever its bytes.
    place: of the last piece that was read before.
  """
  kind = "" if plain else unpacked(path).suffix
  if kind == ".jsonl":
    yield from _lines(path, field or FIELD, *place)
  elif kind == ".parquet":
    yield from _rows(path, field or FIELD, place[1])
  elif field:
    raise ValueError(
      f"{path} has no field {field!r}: it is not .jsonl, .parquet"
    )
  else:
    yield from _whole(path, plain, *place)


@contextlib.contextmanager
def _opened(path: pathlib.Path):
  """The unpacked stream, and the file itself."""
  try:
    with (
      open(path, "rb") as file,
      OPEN.get(path.suffix, contextlib.nullcontext)(file) as stream,
    ):
      yield stream, file
  except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError) as error:
    raise ValueError(f"{path} cannot be unpacked: {error}") from error
  except OSError as error:
    raise ValueError(
      f"{path} cannot be read: {error.strerror or error}"
    ) from error


def _whole(
  path: pathlib.Path, plain: bool, at: int, number: int
) -> Iterator[Piece]:
  if number:
    return
  rest, last = b"", False
  with _opened(path) as (stream, file):
    stream.seek(at)
    while not last:
      more = stream.read(PIECE)
      text, last = rest + more, not more
      end = len(text) if plain else _checked(path, text, last)
      at += end
      yield Piece(text[:end], last, (at, int(last)), file.tell())
      rest = text[end:]


def _checked(path: pathlib.Path, text: bytes, last: bool) -> int:
  """How much of it ends with a whole symbol; ValueError for what is no text."""
  try:
    _, end = codecs.utf_8_decode(text, "strict", last)
  except UnicodeDecodeError:
    end = None
  if end is None or 0 in text:
    raise ValueError(f"{_fault(path)}, or bytes:{path} takes any bytes")
  return end


def _fault(path: pathlib.Path) -> str:
  """What is wrong with a file that is no text."""
  size = nul = right = 0
  first, rest = None, b""
  decoder = codecs.getincrementaldecoder("utf-8")("ignore")
  with _opened(path) as (stream, _):
    while more := stream.read(PIECE):
      nul += more.count(0)
      right += len(decoder.decode(more).encode())
      if first is None:
        text = rest + more
        try:
          rest = text[codecs.utf_8_decode(text)[1] :]
        except UnicodeDecodeError as error:
          first = size - len(rest) + error.start, text[error.start]
      size += len(more)
  if first is not None:
    at, byte = first
    return (
      f"{path}: {_share(size - right, size)} are not UTF-8 (the first is byte "
      f"{at}, 0x{byte:02x}); convert it (iconv -t utf-8)"
    )
  if rest:
    end = size - len(rest)
    return (
      f"{path} ends inside a symbol of UTF-8: cut it at {end} bytes "
      f"(head -c {end})"
    )
  return f"{path} is no text: {_share(nul, size)} are NUL; name a text in UTF-8"


def _share(part: int, size: int) -> str:
  return f"{part:,} of its {size:,} bytes, {part / size:.2%},"


def _lines(
  path: pathlib.Path, field: str, at: int, number: int
) -> Iterator[Piece]:
  with _opened(path) as (stream, file):
    stream.seek(at)
    for line in stream:
      number += 1
      where = f"{path}, line {number}"
      at += len(line)
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
      text = _encoded(where, field, found[field])
      yield Piece(text, True, (at, number), file.tell())


def _rows(path: pathlib.Path, field: str, number: int) -> Iterator[Piece]:
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
      size, rows = path.stat().st_size, file.metadata.num_rows
      begin = 0
      for group in range(file.num_row_groups):
        end = begin + file.metadata.row_group(group).num_rows
        if end > number:
          values = (
            value
            for batch in file.iter_batches(ROWS, [group], [field])
            for value in batch.column(0).to_pylist()
          )
          for value in itertools.islice(values, number - begin, None):
            number += 1
            text = _encoded(f"{path}, row {number}", field, value)
            yield Piece(text, True, (0, number), size * number // rows)
        begin = end
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
