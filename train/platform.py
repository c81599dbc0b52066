"""What a process needs before and around JAX: set-up, and a description.

setup(platform, cores, distributed) comes first in every command, before `import
jax` if it can:

  an `arch` that is not this checkout's is refused (PyPI has another one);
  freed memory stays with the process: fresh pages for each large result cost
    a CPU step a fifth to a half of its time;
  where it trains, a CPU is one device a core, see train/sharding.py: a step
    takes three quarters to nine tenths of its time on two;
  JAX does not look for a TPU where libtpu is installed and no TPU is, which
    prints errors; a platform that was asked for and is not there is refused,
    and so is a CPU where there is an accelerator that JAX does not see;
  on a CPU, sums are not given to YNNPACK by a jaxlib that does so wrongly;
  programs that took a second to compile are kept for the next start: 17 s ->
    1 s for a small Mamba-2, with the same bits in its results; on Colab and
    Kaggle beside the results, for the next session.

Raises ValueError, one line, for all that is refused.
"""

import contextlib
import ctypes
import glob
import hashlib
import importlib.metadata
import importlib.util
import os
import platform as host
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
START = time.perf_counter()  # of the process, but for Python's own
PLATFORMS = ("cpu", "gpu", "tpu")
DEVICES = {
  # not /dev/accel/, which is of neural processors; vfio is of whatever a
  # virtual machine was given
  "tpu": ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*"),
  "gpu": ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg"),  # CUDA, ROCm, WSL
}
# of PCI, as in jax/_src/hardware_utils.py; a network card is Google's, too
GOOGLE = "0x1ae0"
TPUS = ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")
PCI = "/sys/bus/pci/devices/*"
VISIBLE = ("CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS")  # "" or -1 for none
PACKAGES = (
  "jax jaxlib flax optax orbax-checkpoint grain tensorflow-datasets numpy"
).split()
# a product and the sum of its squares, of 32,769 rows or more, are .2 % off:
# https://github.com/jax-ml/jax/issues/39103
UNSOUND = ("0.10.2", "0.11.0")
SOUND = "--xla_cpu_experimental_ynn_fusion_type=-reduce"
GUARD = Path("/sys/devices/system/cpu/vulnerabilities/gather_data_sampling")


def apart(dtypes: Iterable[str]) -> bool:
  """Whether a CPU that trains in these is best one device a core.

  Products of bfloat16 are not: with two devices, of a core each, mixed takes
  longer than float32, and with one of two cores two thirds to six sevenths.
  """
  return "mixed" not in dtypes


def setup(
  platform: str | None = None, cores: bool = False, distributed: bool = False
):
  """Prepares the process to run on cpu, gpu, tpu or the best there is.

  Args:
    cores: whether a CPU shall be one device a core, to share batches.
      JAX_NUM_CPU_DEVICES overrules this.
    distributed: whether it is one of several processes; see train.hosts.
  """
  if platform not in (None, *PLATFORMS):
    raise ValueError(f"platform {platform!r}: one of {', '.join(PLATFORMS)}")
  own_arch()
  if platform in DEVICES and not device_files(platform):
    raise absent(
      platform,
      f"no {platform.upper()} was found (there is no "
      f"{' or '.join(DEVICES[platform])})",
    )
  on_cpu = platform == "cpu" or not any(map(device_files, DEVICES))
  if on_cpu:
    keep_pages()

  import jax

  if cores and on_cpu and jax.config.jax_num_cpu_devices < 1:
    jax.config.update("jax_num_cpu_devices", core_count())
  if platform is not None:
    # None lets JAX look for CUDA and ROCm
    names = {"cpu": "cpu", "tpu": "tpu,cpu", "gpu": None}[platform]
    jax.config.update("jax_platforms", names)
  elif on_cpu and importlib.util.find_spec("libtpu"):
    jax.config.update("jax_platforms", jax.config.jax_platforms or "cpu")
  if distributed:
    from train import hosts

    hosts.start()
  try:
    with sound_sums() if on_cpu else contextlib.nullcontext():
      found = jax.default_backend()
  except RuntimeError as error:
    raise absent(platform, str(error).partition("\n")[0]) from error
  if platform not in (None, found):
    raise absent(platform, f"JAX sees a {found} only")
  if platform is None and found == "cpu":
    refuse_unseen()
  keep_programs(found)


@contextlib.contextmanager
def sound_sums():
  """For when XLA reads its flags: without the sums that it does wrongly. Later
  libtpu, which compiles ahead of time, would refuse a CPU's flag."""
  given = os.environ.get("XLA_FLAGS")
  if importlib.metadata.version("jaxlib") in UNSOUND:
    # the last one holds
    os.environ["XLA_FLAGS"] = f"{SOUND} {given or ''}".strip()
  try:
    yield
  finally:
    if given is None:
      os.environ.pop("XLA_FLAGS", None)
    else:
      os.environ["XLA_FLAGS"] = given


def absent(platform: str | None, why: str) -> ValueError:
  asked = f"--platform={platform}" if platform else "JAX_PLATFORMS"
  return ValueError(f"{asked}: {why}; leave it out to run on what there is")


def refuse_unseen():
  """ValueError for an accelerator that is surely here and that JAX leaves out.

  JAX would only log that it falls back to the CPU.
  """
  hidden = any(os.environ.get(name) in ("", "-1") for name in VISIBLE)
  if hidden or "JAX_PLATFORMS" in os.environ:
    return
  for name, found in sure().items():
    extra = {"TPU": "tpu", "GPU": "cuda"}[name]
    raise ValueError(
      f"this machine has a {name} ({found}) that JAX does not see: its "
      f"library is missing (.[{extra}]; on Colab and Kaggle restart instead) "
      "or another process holds it; --platform=cpu goes on without it"
    )


def sure() -> dict[str, str]:
  """A TPU and a GPU that are surely here; other files may be of anything."""
  found = {"TPU": tpu_chips(), "GPU": glob.glob("/dev/nvidia[0-9]*")}
  return {name: several[0] for name, several in found.items() if several}


def tpu_chips() -> list[str]:
  """PCI devices that are a TPU's."""
  found = []
  for device in map(Path, glob.glob(PCI)):
    try:
      ids = [
        (device / name).read_text().strip() for name in ("vendor", "device")
      ]
    except OSError:
      continue
    if ids[0] == GOOGLE and ids[1] in TPUS:
      found.append(device.name)
  return found


def own_arch():
  """Refuses an `arch` that is not the one beside this file."""
  spec = importlib.util.find_spec("arch")
  given = Path(spec.origin or "?").resolve() if spec else None
  if given != ROOT / "arch" / "__init__.py":
    raise ValueError(
      f"`import arch` finds {given}, not {ROOT / 'arch'}: run from {ROOT}, or "
      "uninstall the other package (pip uninstall arch)"
    )


def device_files(platform: str) -> list[str]:
  return [name for pattern in DEVICES[platform] for name in glob.glob(pattern)]


def keep_pages():
  """Lets glibc keep what is freed, in one arena; nothing elsewhere."""
  if host.libc_ver()[0] != "glibc":
    return
  libc = ctypes.CDLL(None)
  M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8
  libc.mallopt(M_MMAP_MAX, 0)
  libc.mallopt(M_MMAP_THRESHOLD, 4 * 2**20 * ctypes.sizeof(ctypes.c_long))
  libc.mallopt(M_TRIM_THRESHOLD, -1)  # never
  libc.mallopt(M_ARENA_MAX, 1)


def keep_programs(backend: str):
  """Keeps compiled programs on disk, where loading them is safe and silent.

  On Intel's CPUs that avoid gathers (those with a mitigation of gather data
  sampling) XLA takes that preference for an instruction set, and prints errors
  at every load: https://github.com/jax-ml/jax/issues/38445. Elsewhere than on
  Linux loading has crashed. JAX_COMPILATION_CACHE_DIR overrules this.
  """
  import jax

  from train import cache, sites

  if jax.config.jax_compilation_cache_dir:
    return
  name = backend
  if backend == "cpu":
    if not GUARD.exists() or GUARD.read_text().strip() != "Not affected":
      return
    # a home folder may be shared by machines of other instruction sets
    name += "-" + hashlib.sha256("".join(cpu("flags")).encode()).hexdigest()[:8]
  folder = (sites.programs() or cache.root() / sites.PROGRAMS) / name
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError:
    return  # slower starts, and nothing else
  if os.access(folder, os.W_OK):
    jax.config.update("jax_compilation_cache_dir", str(folder))


def cpu(field: str) -> list[str]:
  """A field of /proc/cpuinfo's first processor, in a list; [] without one."""
  info = Path("/proc/cpuinfo")
  lines = info.read_text().splitlines() if info.exists() else []
  pairs = (line.partition(":") for line in lines)
  return [v.strip() for k, _, v in pairs if k.strip() == field][:1]


def core_count() -> int:
  """How many cores this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def machine() -> dict:
  """What ran: for results, beside times."""
  import jax

  devices = jax.devices()
  return {
    "cpu": (cpu("model name") or [host.processor() or host.machine()])[0],
    "cores": core_count(),
    "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    "system": host.platform(),
    "platform": devices[0].platform,
    "device": devices[0].device_kind,
    "devices": len(devices),
  }


def versions() -> dict:
  """Python, the packages that numbers depend on, and this project's commit."""
  found = {"python": host.python_version()}
  found |= {name: importlib.metadata.version(name) for name in PACKAGES}
  return found | {"commit": commit()}


def commit() -> str | None:
  """This checkout's commit, `-dirty` if changed; None outside of git."""
  if not (ROOT / ".git").exists():
    return None
  command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
  try:
    done = subprocess.run(
      [*command, "--abbrev=40"], capture_output=True, text=True, check=True
    )
  except (FileNotFoundError, subprocess.CalledProcessError):
    return None  # no git, or no commit yet
  return done.stdout.strip()


def command() -> str:
  """The command that this process was started by, for a shell."""
  return shlex.join(["python", *sys.orig_argv[1:]])


def peak(dtype: str = "float32", seconds: float = 1.5) -> float:
  """The best FLOP/s of matrix products here, measured for `seconds`.

  Args:
    dtype: as a model's, "mixed" too.
  """
  import jax
  import jax.numpy as jnp

  from arch.product import matmul, mixed

  shapes = [(4096, 256, 1024), (4096, 1024, 256), (1024,) * 3, (2048,) * 3]
  if jax.default_backend() != "cpu":
    shapes += [(8192,) * 3]
  few = dtype == "mixed"
  # of its own: JAX would keep what another dtype made of `matmul`
  product = jax.jit(lambda x, w: matmul(x, w))
  kind = "float32" if few else dtype
  args = [
    (jnp.ones((M, K), kind), jnp.ones((K, N), kind)) for M, K, N in shapes
  ]
  with mixed(few):
    jax.block_until_ready([product(*pair) for pair in args])
  best, end = 0.0, time.perf_counter() + seconds
  while time.perf_counter() < end:
    for (M, K, N), pair in zip(shapes, args, strict=True):
      start = time.perf_counter()
      jax.block_until_ready(product(*pair))
      took = time.perf_counter() - start
      best = max(best, 2 * M * K * N / took)
  return best
