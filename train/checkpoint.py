"""Checkpoints: the last K and the best, each whole or not there at all.

checkpoints/STEP/ holds what Orbax writes, `state` (a nested dict of arrays) and
`iterator` (Grain's), and a `seal`: the score, the shape of every array, the
CRC-32 of every file and its own. Neither Orbax nor TensorStore notices a
flipped bit in an array; the seal does. It is written into the temporary folder
that Orbax then renames, so a folder under its final name is whole unless the
disk damaged it. Only then are older ones deleted.

Of several processes, all save and restore, in one folder that all see; the
first of them seals, deletes, moves aside and decides what is restored.

Raises ValueError where there is nothing to restore or it fits another model,
OSError where the disk does not take a checkpoint.
"""

import functools
import json
import logging
import math
import os
import shutil
import sys
import zlib
from pathlib import Path

import jax

from train import hosts, renames, workdir

FOLDER, DAMAGED, SEAL = "checkpoints", "damaged", "seal"


class Checkpoints:
  """Saves in the background; restores the newest checkpoint that is whole.

  Args:
    path: the run's folder; its lock must be held.
    keep: how many of the newest stay, beside the best.
    metric: which of `metrics` is the score.
    better: "min" or "max".
  """

  def __init__(self, path, keep=2, *, metric="bits_per_byte", better="min"):
    if keep < 1:
      raise ValueError(f"keep={keep}: at least the newest checkpoint is kept")
    if better not in ("min", "max"):
      raise ValueError(f"better={better!r}: min or max")
    self.path, self.folder = Path(path), Path(path) / FOLDER
    self.keep, self.metric, self.better = keep, metric, better
    self._step, self._label = None, None  # of the save under way

  def save(self, step: int, state, iterator=None, metrics=None) -> bool:
    """Copies the state; a thread writes it while training goes on.

    Waits for the save before, and raises what went wrong with it.

    Args:
      step: what `restore` returns beside the state.
      state: a nested dict of arrays, with optax states in it.
      iterator: Grain's; its next batch is the one after this step's.
      metrics: holds the score; without, or where it is not finite, this
        checkpoint is never the best.

    Returns:
      False where this step is saved already and nothing was written.
    """
    self.wait()
    if hosts.decided(lambda: step in steps(self.path)):
      return False
    score = None if metrics is None else float(metrics[self.metric])
    if score is not None and not math.isfinite(score):
      score = None
    self._label = {
      "score": score,
      "better": self.better,
      "arrays": shapes(state),
      "iterator": iterator is not None,
    }
    self._step = step
    ocp = orbax()
    items = {"state": ocp.args.PyTreeSave(state)}
    if iterator is not None:
      from grain.checkpoint import CheckpointSave

      items["iterator"] = CheckpointSave(iterator)
    self._run(
      lambda: self._manager.save(
        step, args=ocp.args.Composite(**items), force=True
      )
    )
    return True

  def wait(self):
    """Returns when the save under way is on disk; raises why it is not."""
    if self._step is not None:
      self._run(self._manager.wait_until_finished)
      self._step = None

  def restore(self, abstract_state, iterator=None):
    """The newest whole checkpoint; damaged ones are moved aside, and named.

    Args:
      abstract_state: the state, or its shapes with shardings (default: the
        first device).
      iterator: Grain's, which is set to where it was.

    Returns:
      (state, step), or None where there is none.
    """
    self.wait()
    whole = hosts.decided(self._newest)
    self._resync()
    if whole is None:
      return None
    return read(self.folder / str(whole), abstract_state, iterator), whole

  def _newest(self) -> int | None:
    """The newest whole step; moves those after it aside."""
    damaged = {}
    whole = None
    for step in reversed(steps(self.path)):
      damaged[step] = damage(self.folder / str(step))
      if not damaged[step]:
        whole = step
        break
    then = "starting over" if whole is None else f"going on from step {whole}"
    for step, why in damaged.items():
      if why:
        say(f"damaged checkpoint, moved to {self._aside(step)}: {why}; {then}")
    return whole

  def latest(self) -> int | None:
    """The newest step on disk."""
    return max(steps(self.path), default=None)

  def best(self) -> int | None:
    """The step with the best score, the newest where none has one."""
    return next(iter(ranked(self.path)), None)

  def close(self):
    """Waits for the save under way; raises what went wrong with it."""
    try:
      self.wait()
    finally:
      if "_manager" in self.__dict__:
        self._manager.close()
        del self._manager

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  @functools.cached_property
  def _manager(self):
    ocp = orbax()
    background = ocp.AsyncOptions(
      barrier_sync_fn=barrier(),
      post_finalization_callback=self._seal,
      # or its threads wait for a folder that a full disk refused, and keep
      # the process from ending for 20 minutes
      create_directories_asynchronously=False,
    )
    options = ocp.CheckpointManagerOptions(
      preservation_policy=self,
      save_root_metadata=False,
      async_options=background,
    )
    hosts.decided(lambda: sweep(self.folder))
    return ocp.CheckpointManager(self.folder.absolute(), options=options)

  def should_preserve(self, checkpoints, *, context):
    """Orbax asks this at every save, the one under way included."""
    del context
    all_steps = [c.step for c in checkpoints]
    costs = {
      s: cost(self._label if s == self._step else label(self.folder / str(s)))
      for s in all_steps
    }
    best = min(all_steps, key=lambda s: (costs[s], -s))
    kept = {best, *sorted(all_steps)[-self.keep :]}
    return [s in kept for s in all_steps]

  def _seal(self):
    """Orbax calls this when all is written, before it renames the folder."""
    for folder in self.folder.iterdir():
      if folder.name.split(".")[0] == str(self._step):
        files = checksums(folder)
        text = json.dumps({**self._label, "files": files}).encode()
        workdir.replace(
          folder / SEAL, f"{zlib.crc32(text):08x} {text.decode()}"
        )

  def _run(self, call):
    try:
      call()
    except (OSError, ValueError) as e:  # TensorStore: ValueError
      step, self._step = self._step, None
      if hosts.first():
        sweep(self.folder)
      self._resync()
      for code in workdir.ADVICE:
        why = os.strerror(code)
        if why in str(e):
          place = self.folder / str(step)
          raise workdir.unwritable(place, code, why) from e
      raise

  def _resync(self):
    """Tells Orbax what is on disk, where that is not what it did itself."""
    if "_manager" in self.__dict__:
      self._manager.reload()

  def _aside(self, step) -> Path:
    """Moves a checkpoint out of the way, keeping all of it."""
    with workdir.writing(self.path / DAMAGED):
      (self.path / DAMAGED).mkdir(exist_ok=True)
      n = sum(1 for _ in (self.path / DAMAGED).iterdir())
      place = self.path / DAMAGED / f"{step}.{n}"
      return (self.folder / str(step)).rename(place)


def load_model(path, which="best"):
  """train.models.load, by its name of before."""
  from train import models

  return models.load(path, which)


def read(folder: Path, abstract_state, iterator=None, part=False):
  """The state of one whole checkpoint; `part` of it where the rest is unused.

  Raises:
    ValueError: it holds other arrays; names them.
  """
  saved, wanted = label(folder), abstract_state
  arrays = saved["arrays"]
  rename = renames.of(arrays)
  if rename:
    wanted = renames.older(wanted, rename)
  given = shapes(wanted)
  names = given if part else arrays | given
  other = [
    f"{name}: saved {arrays.get(name)}, expected {given.get(name)}"
    for name in names
    if arrays.get(name) != given.get(name)
  ]
  streams = iterator is not None
  if not part and saved["iterator"] != streams:
    other.append(f"iterator: saved {saved['iterator']}, expected {streams}")
  if other:
    raise ValueError(
      f"{folder} does not fit this model or version:\n  " + "\n  ".join(other)
    )
  ocp = orbax()
  target = jax.tree.map(placed, wanted)
  args = ocp.args.PyTreeRestore(
    item=target,
    restore_args=ocp.checkpoint_utils.construct_restore_args(target),
    partial_restore=part,
  )
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    state = reader.restore((folder / "state").absolute(), args=args)
  if rename:
    state = renames.newer(state, abstract_state, rename)
  if iterator is not None:
    # Grain's own reader wants as many processes as there were
    (file,) = folder.glob("iterator/process_0-of-*.json")
    iterator.set_state(json.loads(file.read_text()))
  return state


def placed(x):
  """Its shape, with the sharding it shall have."""
  first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  sharding = getattr(x, "sharding", None) or first
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def shapes(tree) -> dict[str, str]:
  """params.norm.weight -> float32[128], for every array."""
  named = {}
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    named[name] = f"{x.dtype}{list(x.shape)}"
  return named


def drop(path, but: int | None = None):
  """Deletes a run's checkpoints, all of them or all but one step's."""
  for step in steps(path):
    if step != but:
      shutil.rmtree(Path(path) / FOLDER / str(step), ignore_errors=True)


def sweep(folder: Path):
  """Deletes what a save left that failed or was killed."""
  for part in folder.glob(f"*{orbax().utils.TMP_DIR_SUFFIX}*"):
    shutil.rmtree(part, ignore_errors=True)  # or the next start does


def steps(path) -> list[int]:
  """The steps of a run that have a checkpoint, rising."""
  folder = Path(path) / FOLDER
  if not folder.exists():
    return []
  return sorted(int(f.name) for f in folder.iterdir() if f.name.isdecimal())


def ranked(path) -> list[int]:
  """The same, best first; those without a score last, the newest first."""
  folder = Path(path) / FOLDER
  return sorted(steps(path), key=lambda s: (cost(label(folder / str(s))), -s))


def label(folder: Path) -> dict | None:
  """What the seal says; None where it is missing or was changed."""
  try:
    crc, text = (folder / SEAL).read_bytes().split(b" ", 1)
  except (OSError, ValueError):
    return None
  return json.loads(text) if crc == b"%08x" % zlib.crc32(text) else None


def cost(seal: dict | None) -> float:
  """The score such that less is better; infinite for none."""
  if seal is None or seal["score"] is None:
    return math.inf
  return seal["score"] if seal["better"] == "min" else -seal["score"]


def damage(folder: Path) -> str | None:
  """What is wrong with a checkpoint's files."""
  saved = label(folder)
  if saved is None:
    return f"no whole {SEAL}"
  try:
    found = checksums(folder)
  except OSError as e:
    return str(e)
  for name, crc in saved["files"].items():
    if name not in found:
      return f"{name} is missing"
    if found[name] != crc:
      return f"{name} was changed or cut short"
  return None


def checksums(folder: Path) -> dict[str, int]:
  """The CRC-32 of every file of the items in a checkpoint.

  Orbax's own files beside the items are still written when a seal is, and
  never read here.
  """
  found = {}
  for file in sorted(folder.glob("*/**/*")):
    if file.is_file():
      crc = 0
      with open(file, "rb") as f:
        while chunk := f.read(1 << 20):
          crc = zlib.crc32(chunk, crc)
      found[str(file.relative_to(folder))] = crc
  return found


def barrier():
  """Orbax's between processes, but for one in which a save failed: the others
  wait for it at an earlier one."""
  meet = orbax().multihost.get_barrier_sync_fn()

  def sync(**fields):
    if sys.exc_info()[0] is None:
      meet(**fields)

  return sync


def say(line: str):
  if hosts.first():
    print(line, file=sys.stderr, flush=True)


@functools.cache
def orbax():
  """Imported at the first save or restore: it takes half a second."""
  import orbax.checkpoint

  # what is raised here in one line, it logs as well, with its traces
  logging.getLogger("absl").addFilter(lambda r: "/orbax/" not in r.pathname)
  logging.getLogger("asyncio").addFilter(
    lambda r: "never retrieved" not in r.getMessage()
  )
  # and its threads still talk to the event loop that a failure has closed
  hook = sys.unraisablehook

  def quiet(unraisable):
    if str(unraisable.exc_value) != "Event loop is closed":
      hook(unraisable)

  sys.unraisablehook = quiet
  return orbax.checkpoint
