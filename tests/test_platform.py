"""Every process set-up in a process of its own."""

import os
import subprocess
import sys

import models
import pytest

from train import platform


def python(code, folder=models.ROOT, **environment):
  """Runs code as a fresh process; None removes an environment's variable."""
  env = {**os.environ, "PYTHONPATH": str(models.ROOT), **environment}
  return subprocess.run(
    [sys.executable, "-W", "error", "-c", code],
    capture_output=True,
    text=True,
    env={k: v for k, v in env.items() if v is not None},
    cwd=folder,
    timeout=60,
  )


SETUP = """
from train import platform
platform.setup({platform!r})
import jax, jax.numpy as jnp
print(jax.default_backend(), jnp.sum(jnp.ones(3)))
"""


@pytest.mark.parametrize("given", [None, "cpu"])
def test_silent_where_libtpu_finds_no_tpu(given, tmp_path):
  if platform.device_files("tpu"):
    pytest.skip("a TPU machine")
  done = python(
    SETUP.format(platform=given), JAX_PLATFORMS=None, LAB_CACHE=str(tmp_path)
  )
  assert done.stderr == ""
  assert done.stdout.startswith("cpu 3.0")


@pytest.mark.parametrize(
  ("cores", "environment", "devices"),
  [
    ("False", {}, 1),
    ("True", {}, platform.core_count()),
    ("True", {"JAX_NUM_CPU_DEVICES": "3"}, 3),
  ],
)
def test_a_device_a_core(cores, environment, devices, tmp_path):
  if any(map(platform.device_files, platform.DEVICES)):
    pytest.skip("not a CPU machine")
  code = f"from train import platform\nplatform.setup(cores={cores})\n"
  done = python(
    code + "import jax\nprint(jax.device_count())",
    LAB_CACHE=str(tmp_path),
    JAX_PLATFORMS=None,
    XLA_FLAGS=None,
    **environment,
  )
  assert (done.stdout.strip(), done.stderr) == (str(devices), "")


@pytest.mark.parametrize("asked", ["tpu", "gpu"])
@pytest.mark.parametrize("files", [[], ["/dev/null"]])
def test_absent_platform_is_refused(asked, files, tmp_path):
  """Also where its device files are there, and JAX's part is not."""
  if platform.device_files(asked):
    pytest.skip(f"a {asked} machine")
  done = python(
    "from train import platform\n"
    f"platform.device_files = lambda _: {files}\n"
    f"platform.setup({asked!r})",
    JAX_PLATFORMS="cpu",
    LAB_CACHE=str(tmp_path),
  )
  last = done.stderr.splitlines()[-1]
  assert last.startswith(f"ValueError: --platform={asked}: ")
  assert done.stdout == ""


@pytest.fixture
def seen(tmp_path, monkeypatch):
  """Puts the files of devices into a folder in place of the machine's."""
  for name in (*platform.VISIBLE, "JAX_PLATFORMS"):
    monkeypatch.delenv(name, raising=False)
  found = platform.glob.glob
  monkeypatch.setattr(platform.glob, "glob", lambda p: found(f"{tmp_path}{p}"))

  def put(*paths, text=""):
    for path in paths:
      file = tmp_path / path.lstrip("/")
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_text(text)

  return put


def pci(put, vendor, device):
  put("/sys/bus/pci/devices/0000:00:05.0/vendor", text=f"{vendor}\n")
  put("/sys/bus/pci/devices/0000:00:05.0/device", text=f"{device}\n")


def test_an_accelerator_that_jax_does_not_see_is_refused(seen, monkeypatch):
  pci(seen, "0x1ae0", "0x0063")
  with pytest.raises(ValueError, match=r"has a TPU \(.*--platform=cpu") as e:
    platform.refuse_unseen()
  assert "\n" not in str(e.value)
  pci(seen, "0x1ae0", "0x0042")  # a network card of the same maker
  platform.refuse_unseen()
  seen("/dev/nvidia0")
  with pytest.raises(ValueError, match=r"has a GPU \(.*--platform=cpu"):
    platform.refuse_unseen()
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
  platform.refuse_unseen()


def test_what_may_be_anything_is_not_refused(seen):
  seen("/dev/vfio/0", "/dev/dxg", "/dev/kfd", "/dev/nvidiactl")
  platform.refuse_unseen()
  assert platform.device_files("tpu") and platform.device_files("gpu")


def test_a_neural_processor_is_no_tpu(seen):
  seen("/dev/accel/accel0")
  assert not platform.device_files("tpu")
  seen("/dev/accel0")
  assert platform.device_files("tpu")


def test_setup_refuses_a_cpu_in_an_accelerators_place(tmp_path):
  code = (
    "from train import platform\n"
    "platform.tpu_chips = lambda: ['0000:00:05.0']\n"
    "platform.setup({})"
  )
  fields = {"JAX_PLATFORMS": None, "LAB_CACHE": str(tmp_path)}
  done = python(code.format("None"), **fields)
  assert "ValueError: this machine has a TPU" in done.stderr.splitlines()[-1]
  assert python(code.format("'cpu'"), **fields).returncode == 0


def test_unknown_platform():
  with pytest.raises(ValueError, match="'quantum': one of cpu, gpu, tpu"):
    platform.setup("quantum")


def test_other_arch_is_refused(tmp_path):
  (tmp_path / "arch").mkdir()
  (tmp_path / "arch" / "__init__.py").touch()
  done = python(
    "from train import platform; platform.setup('cpu')",
    tmp_path,
    PYTHONPATH=os.pathsep.join([str(tmp_path), str(models.ROOT)]),
  )
  last = done.stderr.splitlines()[-1]
  assert last.startswith("ValueError: `import arch` finds")
  assert str(tmp_path) in last and str(models.ROOT) in last


FAULTS = """
import resource
from train import platform
platform.keep_pages()
import jax, jax.numpy as jnp
f = jax.jit(lambda x: x + 1)
x = jnp.ones(2**23)
for _ in range(20):
  f(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
  f(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_pages_are_kept():
  """32 MB are 8192 pages of 4 KB, by default fresh ones for each result."""
  if platform.host.libc_ver()[0] != "glibc":
    pytest.skip("no glibc")
  done = python(FAULTS)
  assert done.stderr == ""
  assert int(done.stdout) < 20 * 8192 / 2


SUMS = """
import os
from train import platform
platform.setup("cpu")
import jax, jax.numpy as jnp
i = jnp.arange(2.0**15 + 1)
x = jnp.stack([i, 0 * i, 0 * i], 1)
f = jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))
print(float(jax.jit(f)(x)[-1]), os.environ.get("XLA_FLAGS"))
"""


@pytest.mark.parametrize("flags", [None, "--xla_cpu_enable_fast_math=false"])
def test_sums_of_large_products_are_right(flags):
  """Which jaxlib 0.10.2 has .2 % off on a CPU, unless it is told."""
  done = python(SUMS, XLA_FLAGS=flags)
  assert done.stdout.split() == [str(2.0**30), str(flags)], done.stderr


CACHED = """
from train import platform
platform.setup("cpu")
import jax
print(jax.config.jax_compilation_cache_dir)
"""


def test_programs_are_kept_beside_the_data(tmp_path):
  done = python(CACHED, LAB_CACHE=str(tmp_path), JAX_COMPILATION_CACHE_DIR=None)
  guard = platform.GUARD
  safe = guard.exists() and guard.read_text().strip() == "Not affected"
  folder = done.stdout.strip()
  assert folder.startswith(str(tmp_path)) if safe else folder == "None"


def test_a_sites_programs_outlive_its_session(tmp_path):
  program = f"""
import pathlib
from train import sites
sites.programs = lambda: pathlib.Path({str(tmp_path)!r}, "kept")
{CACHED}"""
  done = python(program, JAX_COMPILATION_CACHE_DIR=None)
  folder = done.stdout.strip()
  assert folder == "None" or folder.startswith(str(tmp_path / "kept/cpu-"))


def test_programs_are_kept_where_the_user_says(tmp_path):
  done = python(
    CACHED, LAB_CACHE=str(tmp_path), JAX_COMPILATION_CACHE_DIR="elsewhere"
  )
  assert done.stdout.strip() == "elsewhere"


def test_programs_are_not_kept_where_nothing_can_be(tmp_path):
  home = tmp_path / "file"
  home.touch()
  done = python(CACHED, LAB_CACHE=str(home), JAX_COMPILATION_CACHE_DIR=None)
  assert (done.stdout.strip(), done.stderr) == ("None", "")


def test_machine_and_versions():
  machine = platform.machine()
  assert machine["platform"] == "cpu" and machine["cores"] >= 1
  assert machine["memory_bytes"] > 2**28 and machine["cpu"]
  versions = platform.versions()
  assert set(platform.PACKAGES) | {"python", "commit"} == set(versions)
  assert all(versions[name] for name in platform.PACKAGES)


def test_commit_of_this_checkout_only(tmp_path, monkeypatch):
  def git(*args):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *identity, "-C", tmp_path, *args], check=True)

  monkeypatch.setattr(platform, "ROOT", tmp_path)
  assert platform.commit() is None
  git("init", "-q")
  assert platform.commit() is None
  (tmp_path / "a").touch()
  git("add", "a")
  git("commit", "-qm", "a")
  clean = platform.commit()
  assert len(clean) == 40
  (tmp_path / "a").write_text("b")
  assert platform.commit() == clean + "-dirty"


def test_peak_is_a_rate():
  for dtype in ("float32", "bfloat16", "mixed"):
    assert 1e8 < platform.peak(dtype, seconds=0.1) < 1e16


def test_products_of_few_bits_have_all_cores_to_themselves():
  assert platform.apart(["float32", "abc"]) and platform.apart([])
  assert not platform.apart(iter(["0.1", "mixed"]))
