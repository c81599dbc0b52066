import gc
import os
from pathlib import Path

# before JAX is imported: tests run on the CPU, whatever the machine has
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# what tests wait for is the compiler, which takes a quarter of the time so, and
# a seventh less where each worker has a core to itself
os.environ["XLA_FLAGS"] = " ".join(
  [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
  ]
)

import jax
import pytest

from arch import target

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)
target.TARGETS["cpu"] = target.TARGETS["cpu"]._replace(unroll=1)
jax.devices()  # reads the flags, of which libtpu would refuse a CPU's
os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"].rsplit(" ", 2)[0]
# what tracing makes lives on, and to go through it again and again took a tenth
# of the suite's time
gc.freeze()
gc.set_threshold(200_000, 20, 20)


def pytest_runtest_teardown():
  """Lets compiled programs go before a process has as many mappings of memory
  as Linux allows it, 65,530, at which the compiler crashes."""
  maps = Path("/proc/self/maps")
  if maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
    jax.clear_caches()
    gc.collect()


def pytest_addoption(parser):
  parser.addoption(
    "--provenance",
    action="store_true",
    help="keep what the parity and TPU suites find in docs/provenance.json",
  )
  parser.addoption(
    "--anew",
    action="store_true",
    help="also check what docs/provenance.json has of this very code",
  )


# files of tests that look at arch alone, whatever trains and reports beside it
SUITES = (
  "attention body channels combinations count experts loops mixers_authors "
  "mixers_delta quantiser recurrence routers shell vocab weights"
).split()


def pytest_collection_modifyitems(config, items):
  """What is on record of this very code is not shown again."""
  for item in items:
    suite = item.path.stem.removeprefix("test_")
    if suite in SUITES and not item.get_closest_marker("recorded"):
      item.add_marker(pytest.mark.recorded("suites", suite, "tests"))
  if config.getoption("provenance") or config.getoption("anew"):
    return
  from train import provenance

  record, kept, left, shown = provenance.read(), [], [], set()
  for item in items:
    mark = item.get_closest_marker("recorded")
    holds = mark and provenance.holds(record, *recorded(mark, item))
    if holds and mark.args[0] == "suites" and hasattr(item, "callspec"):
      holds = item.originalname in shown  # one of its cases is
      shown.add(item.originalname)
    (left if holds else kept).append(item)
  config.hook.pytest_deselected(items=left)
  items[:] = kept


def recorded(mark, item) -> tuple:
  """Kind, name, section and case; the test's name for none."""
  name = item.name if mark.args[0] == "suites" else item.originalname
  return *mark.args[:3], mark.args[3] if len(mark.args) > 3 else name


@pytest.fixture(autouse=True)
def kept(request, record_property):
  """What a test of a case without a name leaves in the record, if it passes."""
  mark = request.node.get_closest_marker("recorded")
  if mark and len(mark.args) == 3:
    found = recorded(mark, request.node)
    record_property("provenance", [*found])


class Provenance:
  """Gathers what tests recorded as their property `provenance`."""

  def __init__(self):
    self.found = {}

  def pytest_runtest_logreport(self, report):
    for name, value in report.user_properties:
      if name == "provenance" and report.when == "call" and report.passed:
        kind, arch, section, item = value
        self.found.setdefault((kind, arch, section), []).append(item)

  def pytest_sessionfinish(self, exitstatus):
    """Of a run that failed nothing is kept: what is on record is not run."""
    from train import provenance

    if self.found and exitstatus == 0:
      provenance.update(self.found)


def pytest_configure(config):
  worker = hasattr(config, "workerinput")
  if config.getoption("--provenance") and not worker:
    config.pluginmanager.register(Provenance())
