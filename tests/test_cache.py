"""What was prepared is used as it was sealed, or made anew."""

import concurrent.futures
import errno
import os
import pathlib
import threading

import pytest

from train import cache


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
  monkeypatch.setenv("LAB_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


def fill(folder):
  (folder / "inner").mkdir()
  (folder / "inner" / "a.npy").write_bytes(bytes(range(200)))
  (folder / "b.json").write_text("{}")


def silent(line):
  raise AssertionError(line)


def cut(file):
  file.write_bytes(file.read_bytes()[:-1])


def zero(file):
  file.write_bytes(bytes(len(file.read_bytes())))


def empty(file):
  file.write_bytes(b"")


def seal(text):
  return lambda file: (file.parents[1] / cache.SEAL).write_text(text)


@pytest.mark.parametrize(
  "harm, said",
  [
    (cut, "is damaged (inner/a.npy is not as it was written)"),
    (zero, "is damaged (inner/a.npy is not as it was written)"),
    (empty, "is damaged (inner/a.npy is not as it was written)"),
    (pathlib.Path.unlink, "has no a.npy"),
    (lambda file: (file.parents[1] / cache.SEAL).unlink(), "has no seal.json"),
    (seal(""), "cannot be read"),
    (seal("{}"), "has an empty seal"),
    (seal("[3]"), "cannot be read"),
    (seal("[" * 10**5), "cannot be read"),
    (seal('{"b.json": 3}'), "cannot be read"),
  ],
)
def test_what_was_harmed_is_made_anew(harm, said, root):
  folder = cache.kept("a", fill, silent)
  assert cache.kept("a", silent, silent) == folder == root / "a"
  harm(folder / "inner" / "a.npy")
  lines = []
  assert cache.kept("a", fill, lines.append) == folder
  assert len(lines) == 1 and lines[0].startswith(f"{folder} {said}")
  assert lines[0].endswith(": made anew")
  assert (folder / "inner" / "a.npy").read_bytes() == bytes(range(200))
  assert cache.kept("a", silent, silent) == folder
  assert {p.name for p in root.iterdir()} == {"a"}


def test_a_folder_is_whole_or_absent_and_what_was_written_is_gone_on_with(root):
  def fail(folder, error=KeyboardInterrupt):
    (folder / "half").write_text("half")
    raise error

  with pytest.raises(KeyboardInterrupt):
    cache.kept("a", fail, silent)
  assert [p.name for p in root.iterdir()] == ["making-a"]

  def go_on(folder):
    (folder / "half").rename(folder / "whole")

  assert (cache.kept("a", go_on, silent) / "whole").read_text() == "half"
  with pytest.raises(ValueError):  # what is wrong stays wrong
    cache.kept("b", lambda folder: fail(folder, ValueError), silent)
  assert [p.name for p in root.iterdir()] == ["a"]


def test_a_full_disk_is_said_in_a_line(root):
  def fail(folder):
    (folder / "half").write_text("half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with pytest.raises(OSError, match="No space left.*free some space: the same"):
    cache.kept("a", fail, silent)
  assert not (root / "a").exists()


@pytest.mark.parametrize("harmed", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_of_two_processes_the_second_waits(root, harmed, fails):
  """And makes it where the first could not."""
  if harmed:
    zero(cache.kept("a", fill, silent) / "b.json")
  began, waited = threading.Event(), threading.Event()

  def first(folder):
    began.set()
    waited.wait(9)
    (folder / "who").write_text("first")
    if fails:
      raise ValueError

  def second(folder):
    assert not list(folder.iterdir())
    (folder / "who").write_text("second")

  def say(line):
    if "waiting for another process" in line:
      waited.set()

  with concurrent.futures.ThreadPoolExecutor() as pool:
    one = pool.submit(cache.kept, "a", first, say)
    assert began.wait(9)
    other = pool.submit(cache.kept, "a", second, say)
    assert isinstance(one.exception(9), ValueError) == fails
    text = (other.result(9) / "who").read_text()
  assert waited.is_set() and text == ("second" if fails else "first")
  assert {p.name for p in root.iterdir()} == {"a"}


def test_large_files_are_not_read_again(root, monkeypatch):
  """But where their time is another."""
  folder = cache.kept("a", fill, silent)
  file = folder / "inner" / "a.npy"
  monkeypatch.setattr(cache, "LARGE", 99)
  measured, measure = [], cache._measured

  def note(path):
    measured.append(path.name)
    return measure(path)

  monkeypatch.setattr(cache, "_measured", note)
  assert cache.kept("a", silent, silent) == folder and measured == ["b.json"]
  os.utime(file, ns=(0, 1))
  assert cache.kept("a", silent, silent) == folder and "a.npy" in measured
  zero(file)
  cache.kept("a", fill, print)
  assert file.read_bytes() == bytes(range(200))


def test_all_is_on_the_disk_before_the_folder_appears(monkeypatch):
  synced, before = [], []
  sync, rename = cache._sync, pathlib.Path.rename

  def note(path):
    synced.append(path.name)
    sync(path)

  def renamed(path, target):
    before.extend(synced)
    return rename(path, target)

  monkeypatch.setattr(cache, "_sync", note)
  monkeypatch.setattr(pathlib.Path, "rename", renamed)
  folder = cache.kept("a", fill, silent)
  assert {*before} == {"a.npy", "b.json", "inner", cache.SEAL, "making-a"}
  assert synced == [*before, folder.parent.name]


def test_place(monkeypatch, tmp_path):
  assert cache.root() == tmp_path / "cache"
  monkeypatch.delenv("LAB_CACHE")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  assert cache.root() == tmp_path / "small-lm-lab"
  monkeypatch.delenv("XDG_CACHE_HOME")
  monkeypatch.setenv("HOME", str(tmp_path))
  assert cache.root() == tmp_path / ".cache" / "small-lm-lab"


def test_a_place_that_cannot_be_written(monkeypatch, tmp_path):
  (tmp_path / "file").touch()
  monkeypatch.setenv("LAB_CACHE", str(tmp_path / "file" / "cache"))
  with pytest.raises(OSError, match="cannot write the data cache.*LAB_CACHE"):
    cache.kept("a", fill, silent)
