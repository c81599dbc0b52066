"""A run's folder: one writer, one config, one data set.

  config.json      {"format": 1, "config": ..., "data": its hash or null}
  checkpoints/     see train.checkpoint
  damaged/         checkpoints that no longer read back, moved aside
  metrics.jsonl    see train.metrics
  lock             held by the running process, and says which one that is

The lock is an flock: the kernel drops it with the process, kill -9 included.

Raises ValueError for a folder that another process or another run has, and
OSError, with the path and what to do, where the disk does not take a file.
"""

import contextlib
import errno
import fcntl
import itertools
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import configs
from train import hosts, schema
from train.schema import any_, natural, text

FORMAT = 1
SAVED = {"config": {str: any_}, "data": (text, None)}
# of a run's config, what is read beside its model's own fields
RUN = {
  "model": {"vocab?": {"name": text, "size": natural}, "positions?": natural},
  "data?": {"name?": text, "tokenizer?": text},
}

# A resumed run may change these: they say when to look and which devices share
# the work, not what is learnt.
FREE = (
  "train.log_every",
  "train.eval_every",
  "train.save_every",
  "train.keep",
  "train.model_devices",
)

LAG = 20.0  # seconds after which a shared disk shows what another host wrote

SYMBOLS = "model.vocab.size"

ADVICE = {
  errno.ENOSPC: "free some space",
  errno.EDQUOT: "free some space",
  errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
  errno.EROFS: "make it writable or name another --workdir",
  errno.EACCES: "make it writable or name another --workdir",
  errno.EPERM: "make it writable or name another --workdir",
  errno.EEXIST: "name a folder as --workdir",
  errno.ENOTDIR: "name a folder as --workdir",
  errno.EISDIR: "name a file",
  errno.ENOENT: "make its folder",
}


def unwritable(path, code: int | None, why: str) -> OSError:
  """One line for a disk that did not take `path`; code is an errno."""
  advice = ADVICE.get(code, "repair that")
  return OSError(
    f"cannot write {path}: {why}; {advice} and run the same command again. "
    "What was saved before is untouched."
  )


@contextlib.contextmanager
def writing(path):
  """Turns the OSErrors of its body into one line about `path`."""
  try:
    yield
  except OSError as e:
    raise unwritable(path, e.errno, e.strerror or str(e)) from e


def replace(path, content: str | bytes):
  """Writes a file that is there whole or as it was before, never in part."""
  path = Path(path)
  new = path.with_name(f"{path.name}.new")
  with writing(path):
    try:
      with open(new, "wb") as f:
        f.write(content.encode() if isinstance(content, str) else content)
        f.flush()
        os.fsync(f.fileno())
      os.replace(new, path)
    except OSError:
      new.unlink(missing_ok=True)
      raise


def check_writable(path):
  """OSError, before any work, where `replace` could not write a file."""
  path = Path(path)
  new = path.with_name(f"{path.name}.new")
  with writing(path):
    if path.is_dir():
      raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    new.touch()
    new.unlink()


class Workdir(os.PathLike):
  """Holds the lock on a run's folder, which it creates, until `close`; of
  several processes, the first does.

  Raises:
    ValueError: another process holds it, or one of several does not see it.
  """

  def __init__(self, path):
    self.path, self._lock = Path(path), None
    holder = hosts.decided(self._hold)
    try:
      hosts.together(lambda: self._see(holder))
    except ValueError:
      self.close()
      raise

  def _hold(self) -> str:
    """Takes the lock; who has it now."""
    with writing(self.path):
      self.path.mkdir(parents=True, exist_ok=True)
    lock = self.path / "lock"
    with writing(lock):
      self._lock = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
      fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      with writing(lock):
        os.ftruncate(self._lock, 0)
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        os.write(self._lock, holder.encode())
      return holder
    except BlockingIOError:
      holder = os.read(self._lock, 1000).decode(errors="replace")
      self.close()
      raise ValueError(
        f"{self.path} is in use by {holder or 'another process'}: wait for it, "
        "stop it, or name another --workdir"
      ) from None
    except OSError:
      self.close()
      raise

  def _see(self, holder: str):
    """Waits until what the first process wrote is here as well."""
    lock, end = self.path / "lock", time.monotonic() + LAG
    while not hosts.first():
      with contextlib.suppress(OSError):
        if lock.read_text() == holder:
          return
      if time.monotonic() > end:
        raise ValueError(
          f"{lock} on {socket.gethostname()} is not that of {holder}: name a "
          "--workdir on a disk that all hosts see"
        )
      time.sleep(0.1)

  def __fspath__(self):
    return str(self.path)

  def record(
    self, config: Mapping, data: str | None = None, init: str | None = None
  ) -> bool:
    """Writes config.json, or compares with the one of a run that goes on.

    Until something was saved another config takes its place: it may be the
    correction of one that could not be trained.

    Args:
      config: nested dicts of what JSON can hold, or a ConfigDict.
      data: the data's hash, None for a synthetic task.
      init: the workdir whose parameters the run began with.

    Returns:
      Whether the run goes on.

    Raises:
      ValueError: it is another run's folder; names every field that differs.
    """
    return hosts.decided(lambda: self._record(plain(config), data, init))

  def _record(self, config: dict, data: str | None, init: str | None) -> bool:
    kept = {"format": FORMAT, "config": config, "data": data}
    if init is not None:
      kept["init"] = init
    file = self.path / "config.json"
    if not file.exists():
      replace(file, json.dumps(kept, indent=2))
      return False
    saved = read(self.path)
    found = differences(saved, config, init)
    if saved["data"] != data and named(saved["config"]) == named(config):
      found["data changed"] = (
        f"{named(config)} is not what it was: saved {saved['data']}, given "
        f"{data}"
      )
    refused = {k: v for k, v in found.items() if k not in FREE}
    if refused and holds(self.path):
      raise another(self.path, saved["config"], config, refused)
    if found:
      replace(file, json.dumps(kept, indent=2))
    return not refused

  def close(self):
    """Lets the next process in."""
    if self._lock is not None:
      os.close(self._lock)
      self._lock = None

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def check(path, config: Mapping, init: str | None = None):
  """ValueError, before any data are loaded, where `record` would refuse."""
  if (Path(path) / "config.json").exists() and holds(path):
    saved, config = read(path), plain(config)
    found = differences(saved, config, init)
    refused = {k: v for k, v in found.items() if k not in FREE}
    refused.pop(SYMBOLS, None)  # the data's own, once they are loaded
    if refused:
      raise another(path, saved["config"], config, refused)


def differences(saved: Mapping, config: Mapping, init: str | None) -> dict:
  """Field -> what was saved and what is given, where they differ.

  A field that came after the run was saved had its default there.
  """
  old, new = flat(saved["config"]), flat(config)
  later = flat(plain(configs.base_config()))
  old = {k: later[k] for k in new if k not in old and k in later} | old
  old["--init"], new["--init"] = saved.get("init"), init
  return {
    k: f"saved {old.get(k)!r}, given {new.get(k)!r}"
    for k in old | new
    if old.get(k) != new.get(k)
  }


def another(path, saved: Mapping, given: Mapping, refused: Mapping):
  """A ValueError for a folder that another run or comparison has."""
  if kind(saved) != kind(given):
    return ValueError(
      f"{path} holds a {kind(saved)}, and this is a {kind(given)}: name "
      "another --workdir"
    )
  lines = [f"{k}: {how}" for k, how in refused.items()]
  advice = ""
  if "train.steps" in refused:
    advice = (
      "\nThe rate's schedule depends on train.steps: to train it further, name "
      f"another --workdir and --init={path}"
    )
  return ValueError(
    f"{path} is a {kind(given)} of another config; go on with the saved one or "
    "name another --workdir:\n  " + "\n  ".join(lines) + advice
  )


def named(config: Mapping) -> str:
  """The data's name in a run's or comparison's config."""
  data = config.get("data", "its data")
  return data["name"] if isinstance(data, Mapping) else data


def read(path) -> dict:
  """What `record` wrote: format, config and data, with tuples for lists.

  Raises:
    ValueError: no config.json, or none that this version understands.
  """
  file = Path(path) / "config.json"
  if not Path(path).is_dir():
    raise ValueError(f"there is no folder {path}: name a run's as --workdir")
  try:
    saved = schema.load(file)
  except FileNotFoundError:
    raise ValueError(f"{path} holds no run: there is no {file}") from None
  found = saved.get("format") if isinstance(saved, dict) else None
  if found != FORMAT or type(found) is not int:
    raise ValueError(f"{file} has format {found}, this version reads {FORMAT}")
  wrong = schema.wrong(saved, SAVED, "")
  if wrong:
    raise ValueError(f"{file}: {wrong}")
  return tuples(saved)


def of_run(path) -> dict:
  """The config of the run in a folder.

  Raises:
    ValueError: there is none, or the folder holds a comparison.
  """
  config = read(path)["config"]
  if kind(config) != "run":
    runs = sorted(Path(path).glob("runs/*/*-seed*/checkpoints/*"))
    if runs:
      raise ValueError(
        f"{path} holds a comparison, which has no one model: name one of its "
        f"runs, such as --workdir={runs[0].parents[1]}"
      )
    raise ValueError(
      f"{path} holds a comparison, which has no one model, and none of its "
      "runs/ARM/RUN has kept its own: see --keep of launch.compare"
    )
  wrong = schema.wrong(config, RUN, "config")
  if wrong:
    raise ValueError(f"{Path(path) / 'config.json'}: {wrong}")
  return config


def kind(config: Mapping) -> str:
  """Of what a config.json is."""
  return "run" if "model" in config else "comparison"


def holds(path) -> bool:
  """Whether a run, or a run of a comparison, has saved anything there."""
  path = Path(path)
  kept = (path.rglob(f"{name}/*") for name in ("checkpoints", "damaged"))
  return any(f.name[:1].isdecimal() for f in itertools.chain(*kept)) or any(
    path.rglob("result*.json")
  )


def plain(config):
  """What `read` gives back for a config."""
  return tuples(json.loads(json.dumps(config, default=lambda c: c.to_dict())))


def tuples(tree):
  """Tuples for JSON's lists: parts of a model must be hashable."""
  if isinstance(tree, dict):
    return {k: tuples(v) for k, v in tree.items()}
  return tuple(map(tuples, tree)) if isinstance(tree, list) else tree


def flat(tree, prefix: str = "") -> dict:
  """a.b.c -> value."""
  if not isinstance(tree, dict):
    return {prefix: tree}
  leaves = {}
  for key, value in tree.items():
    leaves |= flat(value, f"{prefix}.{key}" if prefix else key)
  return leaves
