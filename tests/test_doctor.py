"""What a machine has, of faked ones."""

import subprocess
import sys

import pytest
from models import ROOT

from train import doctor, platform, sites


@pytest.fixture
def machine(monkeypatch, tmp_path):
  """Device files and PCI devices below tmp_path, none at first."""
  files = {
    "tpu": (str(tmp_path / "vfio[0-9]"),),
    "gpu": (str(tmp_path / "nvidia[0-9]"),),
  }
  monkeypatch.setattr(platform, "DEVICES", files)
  monkeypatch.setattr(platform, "PCI", str(tmp_path / "pci" / "*"))

  def add(name, vendor=None, device=None):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if vendor is None:
      path.touch()
    else:
      path.mkdir()
      (path / "vendor").write_text(f"{vendor}\n")
      (path / "device").write_text(f"{device}\n")
    return path

  return add


def test_the_site_is_told_by_what_it_sets():
  assert sites.site({"KAGGLE_KERNEL_RUN_TYPE": "Batch"}) == "Kaggle, batch"
  told = sites.site({"COLAB_RELEASE_TAG": "release-colab_20260819"})
  assert told == "Colab, release-colab_20260819"
  assert "Linux" in sites.site({})


def test_chips_are_found_by_pci_and_by_file(machine, tmp_path):
  assert doctor.chips() == []
  machine("pci/0000:00:04.0", "0x1ae0", "0x0042")  # a network card
  machine("pci/0000:00:05.0", "0x1ae0", "0x0063")
  machine("pci/0000:00:06.0", "0x10de", "0x0063")
  machine("vfio0")
  machine("nvidia0")
  assert doctor.chips() == [
    "TPU at 0000:00:05.0",
    f"TPU {tmp_path / 'vfio0'}",
    f"GPU {tmp_path / 'nvidia0'}",
  ]


def test_who_holds_a_chip_is_named(machine):
  file = machine("vfio0")
  code = (
    f"import time; f = open({str(file)!r}); print(flush=True); time.sleep(60)"
  )
  with open(file):  # our own process is not meant
    assert doctor.holders() == []
  with subprocess.Popen(
    [sys.executable, "-c", code], stdout=subprocess.PIPE
  ) as other:
    other.stdout.readline()
    (held,) = doctor.holders()
    other.kill()
  assert held.startswith(f"{file}: process {other.pid}, {sys.executable}")
  assert doctor.holders() == []


@pytest.mark.parametrize(
  ("kind", "half", "mixed", "dtype"),
  [
    ("tpu", 1.0, 1.0, "bfloat16"),
    ("cpu", 2.0, 1.1, "float32"),
    ("cpu", 0.9, 1.8, "mixed"),
    ("gpu", 1.0, 1.0, "float32"),  # a T4
    ("gpu", 8.0, 8.0, "bfloat16"),
  ],
)
def test_the_dtype_is_one_that_is_faster(kind, half, mixed, dtype):
  rates = {"float32": 1.0, "bfloat16": half, "mixed": mixed}
  assert doctor.advice(kind, rates).startswith(f"--dtype={dtype}")


def test_a_package_that_is_missing_is_said(monkeypatch):
  packages = ("jax", "no-such-package")
  monkeypatch.setattr(platform, "PACKAGES", packages)
  told = doctor.versions()
  assert "no-such-package is missing" in told and "jax 0." in told


RUN = """
import sys
from launch import command, doctor
from train import doctor as facts, platform
platform.tpu_chips = lambda: ['0000:00:05.0']
platform.peak = lambda dtype, seconds: 5e9
sys.argv = ['doctor', *{words}]
command.run(doctor.main, prepared=False)
"""


def run(cache, *words, **env):
  env |= {"PATH": "", "LAB_CACHE": str(cache)}
  return subprocess.run(
    [sys.executable, "-c", RUN.format(words=words)],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=env,
  )


def test_an_accelerator_that_jax_does_not_see_is_an_error(tmp_path):
  done = run(tmp_path)
  assert "accelerators  TPU at 0000:00:05.0" in done.stdout
  assert "versions      python" in done.stdout
  assert done.returncode == 1 and "JAX  " not in done.stdout
  assert "error: this machine has a TPU (0000:00:05.0)" in done.stderr
  done = run(tmp_path, JAX_PLATFORMS="cpu")
  assert "environment   JAX_PLATFORMS='cpu'" in done.stdout
  assert done.returncode == 1 and "1 x cpu" in done.stdout
  assert (
    "error: JAX sees a CPU beside a TPU (0000:00:05.0): JAX_PL" in done.stderr
  )
  done = run(tmp_path, "--platform=cpu")
  assert done.returncode == 0 and "JAX           1 x cpu" in done.stdout
  assert done.stdout.splitlines()[-1].startswith(
    "dtype         --dtype=float32"
  )
