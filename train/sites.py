"""Where this is, and what stays there: Kaggle, Colab, or one's own machine.

Kaggle keeps what a version leaves in /kaggle/working, 20 GB of it, and shows it
to a later version below /kaggle/input; Colab keeps a mounted Drive alone.
Python's own library is enough for all of it: a session may lack the rest.
"""

import importlib.metadata
import os
import re
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from train import platform

KAGGLE, COLAB = "KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG"  # set by each
RUNS, PROGRAMS = "runs", "programs"


def site(env: Mapping[str, str] = os.environ) -> str:
  """Colab, Kaggle, or this machine's system."""
  if KAGGLE in env:
    return f"Kaggle, {env[KAGGLE].lower()}"
  if COLAB in env:
    return f"Colab, {env[COLAB]}"
  return platform.host.platform()


def results(env: Mapping[str, str] = os.environ, root="/") -> Path:
  """The folder of results that outlives a session, where there is one."""
  drive = Path(root, "content/drive/MyDrive")
  if KAGGLE in env:
    return Path(root, "kaggle/working", RUNS)
  if COLAB in env and drive.exists():
    return drive / "lab" / RUNS
  return Path(RUNS)


def programs(env: Mapping[str, str] = os.environ, root="/") -> Path | None:
  """Where compiled programs outlive a session: beside the results, at a site
  that keeps these alone; None elsewhere."""
  kept = results(env, root)
  return kept.parent / PROGRAMS if kept.is_absolute() else None


def bring_back(env: Mapping[str, str] = os.environ, root="/") -> list[str]:
  """Copies what an earlier version left to `results`; says what, in lines.

  What has a name that is there already stays as it is, and is not mixed with,
  but for compiled programs, each of which is a file of its own. Only Kaggle has
  such inputs: elsewhere nothing is done.

  Raises:
    ValueError: two inputs have a run of one name.
  """
  if KAGGLE not in env:
    return []
  found = {}
  for folder in earlier(root, RUNS):
    for path in sorted(folder.iterdir()):
      if path.name in found:
        raise ValueError(
          f"{found[path.name]} and {path} are of one name: detach one of the "
          "two inputs"
        )
      found[path.name] = path
  said = []
  for name, path in found.items():
    there = results(env, root) / name
    if there.exists():
      said.append(f"{there} is there already: {path} was left")
    else:
      said.append(f"{there} is brought back: {copy(path, there)} files")
  for folder in earlier(root, PROGRAMS):
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
      there = programs(env, root) / path.relative_to(folder)
      if not there.exists():
        copy(path, there)
  return said


def earlier(root, name: str) -> Iterator[Path]:
  """Folders of that name in the inputs, and none that lie in results."""
  for folder, names, _ in os.walk(Path(root, "kaggle/input")):
    names.sort()
    if name in names:
      yield Path(folder, name)
    names[:] = [n for n in names if n not in (RUNS, PROGRAMS)]


def copy(path: Path, to: Path) -> int:
  """Copies a file or folder, which appears whole; returns how many files.

  Contents alone: what inputs may not be written to, results must be.
  """
  new = to.with_name(f"{to.name}.new")
  shutil.rmtree(new, ignore_errors=True)  # of a copy that was cut short
  to.parent.mkdir(parents=True, exist_ok=True)
  files = [path, *path.rglob("*")]
  files = [file for file in files if file.is_file()]
  for file in files:
    copied = new / file.relative_to(path)
    copied.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, copied)
  if files:
    new.rename(to)
  return len(files)


def missing() -> list[str]:
  """Packages that the lab needs and that are not installed."""
  project = tomllib.loads((platform.ROOT / "pyproject.toml").read_text())
  found = []
  for needed in project["project"]["dependencies"]:
    name = re.match(r"[\w-]+", needed)[0]
    try:
      importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found.append(name)
  return found
