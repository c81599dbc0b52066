"""Runs of the lab on Kaggle, by Kaggle's own tool.

A folder has what Kaggle calls a kernel: kernel-metadata.json and lab.py, a
script that holds this checkout's files as they are, and the command. Pushed,
it unpacks them there and calls `session`. To go on it is pushed as it is, with
its own output as an input.

The tool is the command `kaggle` from 2.2.2 on (pip install kaggle): older ones
download a part of an output and say nothing.

Raises ValueError, one line, for all that is refused, by the tool or here.
"""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from train import platform, schema, sites

META, SCRIPT = "kernel-metadata.json", "lab.py"
KERNEL = {"id": schema.text, "machine_shape": schema.text}
NAME = re.compile(r"(?=.{5,50}$)[a-z0-9]+(-[a-z0-9]+)*")
PLATFORMS = {"Tpu": "tpu", "Nvidia": "gpu", "none": "cpu"}  # by how it begins
ENDED = ("COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED")
CODE = ("arch", "configs", "launch", "train")

TEXT = '''"""Of launch.kaggle: a command, and the lab's code of {commit}."""

import base64
import io
import sys
import tarfile
import time
from pathlib import Path

START = time.monotonic()
ROOT = "/"
LAB = """
{lab}"""

lab, packed = Path(ROOT, "tmp/lab"), io.BytesIO(base64.b64decode(LAB))
with tarfile.open(fileobj=packed) as file:
  file.extractall(lab, filter="data")
sys.path.insert(0, str(lab))

from train import kaggle

sys.exit(kaggle.session({words}, "{platform}", {hours}, START, ROOT))
'''

# the command's own words for what is wrong with its flags
CHECK = """
import importlib, sys
from launch import command
sys.argv = sys.argv[1:]
name = sys.argv[0]
try:
  main = importlib.import_module(name).main
  command.no_more(command.parse(sys.argv, main))
except ValueError as error:
  sys.exit(f"{name}: {error}")
"""


class Kernel(NamedTuple):
  """
  Attributes:
    id: USER/NAME; accelerator: as Kaggle has it, or none.
  """

  id: str
  accelerator: str


def push(
  folder,
  words: Sequence[str],
  name: str,
  user: str | None = None,
  accelerator: str = "TpuV5E8",
  hours: float = 8.5,
) -> list[str]:
  """Writes the folder and has Kaggle run it; lines of what came of it.

  Args:
    words: python -m launch.COMMAND and its flags.
    name: of the kernel, among the user's.
    user: on Kaggle; by default who the tool is logged in as.
    hours: after which a command that knows --until is to stop.
  """
  chip = chip_of(accelerator)
  if not NAME.fullmatch(name or ""):
    raise ValueError(
      f"--name={name or ''}: Kaggle wants 5 to 50 small letters and digits, "
      "with single dashes between, as in small-lm"
    )
  stops = check(words)
  before, kernel = held(folder), Kernel(f"{user or me()}/{name}", accelerator)
  if before and before.id != kernel.id:
    raise ValueError(
      f"{folder} is that of {before.id}, and this is {kernel.id}: name another "
      "--folder"
    )
  text = TEXT.format(
    commit=platform.commit(),
    lab=base64.encodebytes(packed()).decode(),
    words=list(words[1:]),
    platform=chip,
    hours=hours if stops else None,
  )
  Path(folder).mkdir(parents=True, exist_ok=True)
  Path(folder, SCRIPT).write_text(text)
  size = f"{Path(folder, SCRIPT)}: {len(text) / 1e3:,.0f} KB, code and command"
  return [size, *started(folder, kernel)]


def resume(folder) -> list[str]:
  """Pushes the same folder again, with what it left as an input."""
  kernel = pushed(folder)
  ended(kernel, "its output is not whole yet")
  return started(folder, kernel, sources=[kernel.id])


def started(folder, kernel: Kernel, sources: Sequence[str] = ()) -> list[str]:
  """Has Kaggle run the folder; its tool's lines."""
  shape = kernel.accelerator
  metadata = {
    "id": kernel.id,
    "title": kernel.id.partition("/")[2],
    "code_file": SCRIPT,
    "language": "python",
    "kernel_type": "script",
    "is_private": True,
    "enable_internet": True,
    # none pins an image: a pinned one may be a CPU's, whatever is asked for
    "machine_shape": "" if shape == "none" else shape,
    "kernel_sources": [*sources],
  }
  Path(folder, META).write_text(json.dumps(metadata, indent=2))
  asked = [] if shape == "none" else ["--accelerator", shape]
  said = tool("kernels", "push", "-p", str(folder), *asked)
  # its exit code is 0 even where Kaggle refused
  if not any("successfully pushed" in line for line in said):
    raise ValueError(f"Kaggle did not take it: {' '.join(said)}")
  if wrong := [line for line in said if "not valid kernel sources" in line]:
    raise ValueError(
      f"it runs without what it left before: {wrong[0]}; cancel it at "
      f"{address(kernel)}"
    )
  return said


def status(folder) -> list[str]:
  """What Kaggle says of the last run."""
  kernel = pushed(folder)
  return [*tool("kernels", "status", kernel.id), address(kernel)]


def pull(folder, out=None) -> list[str]:
  """Downloads what the last run left; lines of how to go on.

  Args:
    out: a folder that is not there yet; by default runs/NAME.
  """
  kernel = pushed(folder)
  out = Path(out or Path(sites.RUNS, kernel.id.partition("/")[2]))
  if out.exists():
    raise ValueError(
      f"{out} is there already: name another as --out, or move it"
    )
  ended(kernel, "it leaves its output when it ends")
  new = out.with_name(f"{out.name}.new")
  shutil.rmtree(new, ignore_errors=True)  # of a download that was cut short
  new.mkdir(parents=True)
  # tools that do not know pages would leave out what is on later ones
  tool("kernels", "output", kernel.id, "-p", str(new), "--page-size", "200")
  new.rename(out)
  runs = out / sites.RUNS
  left = sorted(p for p in runs.iterdir()) if runs.is_dir() else []
  if not left:
    raise ValueError(
      f"{kernel.id} left no runs: its log is in {out}, if it left that"
    )
  return [f"{path}" for path in left] + [*after(folder, out, left)]


def after(folder, out: Path, left: Sequence[Path]) -> Iterator[str]:
  """How a report is made of what is finished, and how the rest goes on."""
  done = [str(path) for path in left if (path / "results.json").exists()]
  if done:
    yield (
      f"report: python -m launch.compare --report={','.join(done)} "
      f"--workdir={out / 'report'}"
    )
  if len(done) < len(left):
    yield (
      "what has no results.json goes on with: python -m launch.kaggle resume "
      f"--folder={folder}"
    )


def session(
  words: Sequence[str], chip: str, hours: float | None, start: float, root="/"
) -> int:
  """On Kaggle: what the script does once the lab is unpacked.

  Args:
    words: the command's, after python.
    chip: the platform that must be there.
    hours: from `start` on, until when the command shall stop.

  Returns:
    The exit code of the first step that failed, or 0.
  """
  for line in sites.bring_back(root=root):
    print(line, flush=True)
  kept = sites.results(root=root)
  kept.mkdir(parents=True, exist_ok=True)
  paths = [str(platform.ROOT), os.environ.get("PYTHONPATH", "")]
  env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}

  def run(*words):
    done = subprocess.run([sys.executable, *words], cwd=kept.parent, env=env)
    return done.returncode

  if lacking := sites.missing():
    print(f"installing {', '.join(lacking)}", flush=True)
    if code := run("-m", "pip", "install", "-q", "-e", paths[0]):
      return code
  if code := run("-m", "launch.doctor", f"--platform={chip}"):
    return code
  until = []
  if hours is not None:
    left = 3600 * hours - (time.monotonic() - start)
    until = [f"--until={max(left, 1):.0f}s"]
  return run(*words, *until)


def check(words: Sequence[str]) -> bool:
  """Whether a command may stop at a time that is not given.

  Raises:
    ValueError: it is no command of the lab, or has other flags.
  """
  asked = " ".join(words)
  if not words:
    raise ValueError(
      "no command to run: give it after --, as in push --name=small-lm -- "
      "python -m launch.compare"
    )
  if not re.match(r"python3? -m launch\.\w+( |$)", asked):
    raise ValueError(f"{asked!r} is not python -m launch.COMMAND and its flags")
  name = words[2]
  file = platform.ROOT / f"{name.replace('.', '/')}.py"
  if not file.exists() or name in ("launch.command", "launch.kaggle"):
    raise ValueError(f"{name} does not run there: python -m launch lists those")
  done = subprocess.run(
    [sys.executable, "-c", CHECK, *words[2:]],
    cwd=platform.ROOT,
    capture_output=True,
    text=True,
  )
  if done.returncode:
    raise ValueError(done.stderr.strip().splitlines()[-1])
  known = "command.define_until()" in file.read_text("utf-8")
  return known and not any(w.startswith(("--until", "-until")) for w in words)


def packed() -> bytes:
  """What git knows of this checkout, as it is in its folder: a tar.xz.

  Raises:
    ValueError: it is not in git, or some of its code is not.
  """
  names = listed()
  if not names:
    raise ValueError(f"{platform.ROOT} is not in git, which tells its files")
  if stray := listed("--others", "--exclude-standard", "--", *CODE):
    raise ValueError(
      f"{stray[0]} is not in git and would stay here: git add it"
    )
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w:xz") as file:
    for name in names:
      if (platform.ROOT / name).is_file():  # git lists what was deleted, too
        file.add(platform.ROOT / name, name, filter=anonymous)
  return buffer.getvalue()


def listed(*words: str) -> list[str]:
  """Files that git lists of this checkout; [] outside of git."""
  try:
    done = subprocess.run(
      ["git", "-C", str(platform.ROOT), "ls-files", "-z", *words],
      capture_output=True,
      text=True,
    )
  except FileNotFoundError:
    return []
  return [name for name in done.stdout.split("\0") if name]


def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
  """Without the names and times of this machine."""
  entry.uid = entry.gid = entry.mtime = 0
  entry.uname = entry.gname = ""
  return entry


def chip_of(accelerator: str) -> str:
  """The platform that JAX calls an accelerator of Kaggle's."""
  for start, chip in PLATFORMS.items():
    if accelerator.startswith(start):
      return chip
  raise ValueError(
    f"--accelerator={accelerator}: TpuV5E8, NvidiaTeslaT4, another name of "
    "Kaggle's, or none"
  )


def held(folder) -> Kernel | None:
  """The kernel of a folder; None where there is no folder, or nothing in it.

  Raises:
    ValueError: it holds something else.
  """
  path = Path(folder)
  names = {p.name for p in path.iterdir()} if path.exists() else set()
  if not names:
    return None
  if other := names - {META, SCRIPT}:
    raise ValueError(
      f"{folder} holds {min(other)}, which launch.kaggle did not write: name "
      "another --folder"
    )
  if META not in names:
    return None
  found = schema.load(path / META, KERNEL)
  return Kernel(found["id"], found["machine_shape"] or "none")


def pushed(folder) -> Kernel:
  """The kernel that `push` wrote; ValueError where it did not."""
  kernel = held(folder)
  if kernel is None or not Path(folder, SCRIPT).exists():
    raise ValueError(f"nothing was pushed from {folder}: push first")
  return kernel


def ended(kernel: Kernel, why: str):
  """ValueError where the last run goes on, or is to come."""
  said = " ".join(tool("kernels", "status", kernel.id))
  found = re.search(r'has status "(?:\w+\.)?(\w+)"', said)
  if not found or found[1].upper() not in ENDED:
    raise ValueError(
      f"{kernel.id} has not ended ({found[1] if found else said}), and {why}: "
      "wait for it"
    )


def address(kernel: Kernel) -> str:
  return f"https://www.kaggle.com/code/{kernel.id}"


def me() -> str:
  """Who the tool is logged in as, by a token, a file or the environment."""
  for line in tool("config", "view"):
    name = line.partition("username: ")[2].strip()
    if name and name != "None":
      return name
  raise ValueError(
    "kaggle does not know its user: kaggle auth login, or name it as --user"
  )


def tool(*words: str) -> list[str]:
  """The lines that Kaggle's tool prints.

  Raises:
    ValueError: it is not there, or failed; its own words for it.
  """
  try:
    done = subprocess.run(
      ["kaggle", *words],
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
    )
  except FileNotFoundError:
    raise ValueError("there is no command kaggle: pip install kaggle") from None
  out, err = (text.strip().splitlines() for text in (done.stdout, done.stderr))
  if done.returncode:
    # it explains a login on stdout, and begins with what it is about
    line = err[-1] if err else next(iter(out), f"exit code {done.returncode}")
    raise ValueError(
      f"kaggle {' '.join(words[:2])}: {line} (kaggle auth login is how to log "
      "in, and pip install -U kaggle brings its newest)"
    )
  return [line for line in (*out, *err) if line.strip()]
