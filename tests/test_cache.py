"""What was prepared is used as it was sealed, or made anew."""

import pathlib

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
  assert {p.name for p in root.iterdir()} == {"a", cache.LOCK}


def test_a_folder_is_whole_or_absent(root):
  def fail(folder):
    (folder / "half").write_text("half")
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    cache.kept("a", fail, silent)
  assert list(root.iterdir()) == []


@pytest.mark.parametrize("harmed", [False, True])
def test_of_two_processes_the_first_is_kept(root, harmed):
  if harmed:
    zero(cache.kept("a", fill, silent) / "b.json")

  def second(folder):  # another process finishes while this one works
    (folder / "who").write_text("second")
    cache.kept("a", lambda f: (f / "who").write_text("first"), print)

  assert (cache.kept("a", second, print) / "who").read_text() == "first"
  assert {p.name for p in root.iterdir()} == {"a", cache.LOCK}


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
  made = [name for name in before if name.startswith("making-")]
  assert len(made) == 1
  assert {*before} == {"a.npy", "b.json", "inner", cache.SEAL, *made}
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
