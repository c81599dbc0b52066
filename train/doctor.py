"""Where this is, what it has, and what stands in the way of training on it.

Nothing here touches an accelerator before platform.setup.
"""

import glob
import importlib.metadata
import importlib.util
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from train import cache, platform, sites

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
LIBRARIES = ("libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")
GAIN = 1.2  # of products, from which on fewer bits are worth it
GB = 1e9


def chips() -> list[str]:
  """What accelerators the machine has, by PCI and by their device files."""
  found = [f"TPU at {device}" for device in platform.tpu_chips()]
  for kind in platform.DEVICES:
    found += [f"{kind.upper()} {name}" for name in platform.device_files(kind)]
  return found


def holders(proc: str = "/proc") -> list[str]:
  """Other processes that have an accelerator's device file open."""
  names = {n for kind in platform.DEVICES for n in platform.device_files(kind)}
  found = {}
  for link in glob.glob(f"{proc}/[0-9]*/fd/*"):
    pid = link.split("/")[-3]
    try:
      name = os.readlink(link)
      words = Path(proc, pid, "cmdline").read_bytes().split(b"\0")
    except OSError:  # it is another user's, or has ended
      continue
    if name in names and int(pid) != os.getpid():
      command = b" ".join(words).decode(errors="replace").strip()
      found[pid] = f"{name}: process {pid}, {command[:60]}"
  return list(found.values())


def versions() -> str:
  found = [f"python {platform.host.python_version()}"]
  for name in (*platform.PACKAGES, *LIBRARIES):
    try:
      found.append(f"{name} {importlib.metadata.version(name)}")
    except importlib.metadata.PackageNotFoundError:
      if name in platform.PACKAGES:
        found.append(f"{name} is missing")
  return ", ".join([*found, f"commit {platform.commit()}"])


def hidden() -> list[str]:
  """What the environment says about which devices JAX may see."""
  names = ("JAX_PLATFORMS", *platform.VISIBLE)
  return [f"{n}={os.environ[n]!r}" for n in names if n in os.environ]


def disks() -> Iterator[str]:
  """What is left where results go and where data and programs are kept."""
  for what, path in (("results", Path.cwd()), ("data", cache.root())):
    there = next(p for p in (path, *path.parents) if p.exists())
    left = shutil.disk_usage(there).free
    yield f"{what}: {left / GB:,.1f} GB left in {path}"


def before() -> Iterator[tuple[str, str]]:
  """What is known without JAX, as a word and what it is."""
  yield "site", sites.site()
  accelerators = chips()
  yield "accelerators", "; ".join(accelerators) or "none"
  for name in hidden():
    yield "environment", name
  for held in holders():
    yield "held", held
  for line in disks():
    yield "disk", line
  if platform.tpu_chips() and HUGE_PAGES.exists():
    kind = HUGE_PAGES.read_text()
    if "[always]" not in kind:
      yield "huge pages", f"{kind.strip()}: slow starts; [always] is faster"
  yield "versions", versions()


def after(seconds: float = 1.5) -> Iterator[tuple[str, str]]:
  """What JAX sees, one product timed, and the dtype that suits it."""
  machine = platform.machine()
  yield "JAX", f"{machine['devices']} x {machine['device']}"
  yield "memory", f"{machine['memory_bytes'] / GB:,.0f} GB of the host"
  dtypes = "float32", "bfloat16", "mixed"
  rates = {dtype: platform.peak(dtype, seconds) for dtype in dtypes}
  for dtype, rate in rates.items():
    yield "products", f"{rate / 1e9:,.0f} GFLOP/s in {dtype}, of one device"
  yield "dtype", advice(machine["platform"], rates)


def advice(kind: str, rates: Mapping[str, float]) -> str:
  """Which --dtype suits, by what products reach in each."""
  if kind == "tpu":
    return "--dtype=bfloat16: a TPU multiplies in it, whatever is asked for"
  if kind == "cpu" and rates["mixed"] >= GAIN * rates["float32"]:
    return "--dtype=mixed: products of float32 rounded to bfloat16 are faster"
  if kind == "cpu":
    return "--dtype=float32: on this CPU fewer bits are no faster"
  if rates["bfloat16"] < GAIN * rates["float32"]:
    return "--dtype=float32: this GPU multiplies no faster in bfloat16"
  return "--dtype=bfloat16"
