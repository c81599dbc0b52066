"""Every training step compiles ahead of time for TPUs, without one.

Tiny ones do; what --provenance keeps was found with small ones. A mixer whose
code, and whose compiler, docs/provenance.json has a record of is not compiled
again, but for a few.
"""

import functools
import os

import jax
import programs
import pytest
from models import CONFIGS, MIXERS, batch, config

from arch import target
from train.sharding import Sharding
from train.step import Step

libtpu = pytest.importorskip("libtpu")
if jax.__version_info__ < (0, 8):
  pytest.skip(
    "jax 0.7 crashes where it compiles for TPUs", allow_module_level=True
  )

# the delta rule, experts, and of hybrids one that shares a block
ALWAYS = ["gated_deltanet", "compact", "zamba2"]


# all on the slice; a program for one chip is the same without what chips tell
# each other
CASES = [
  pytest.param(
    "v5e:2x4",
    name,
    marks=[pytest.mark.recorded("mixers", name, "tpu", "v5e:2x4")]
    * (name not in ALWAYS),
  )
  for name in sorted({*ALWAYS, *MIXERS} & {*CONFIGS})
]
CASES += [("v6e:1x1", "attention")]


@functools.cache
def sharding(topology):
  from jax.experimental import topologies

  os.environ["TPU_SKIP_MDS_QUERY"] = "1"
  os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # one a test worker
  os.environ["TPU_LIBRARY_PATH"] = libtpu.get_library_path()
  chips = map(int, topology.partition(":")[2].split("x"))
  found = topologies.get_topology_desc(
    platform="tpu",
    topology_name=topology,
    # of a chip alone some libtpu want to be told that it is
    chips_per_host_bounds=(*(min(n, 2) for n in chips), 1),
  )
  return Sharding(devices=found.devices)


@pytest.mark.parametrize(("topology", "name"), CASES)
def test_a_training_step_compiles(
  topology, name, record_property, pytestconfig
):
  size = "small" if pytestconfig.getoption("provenance") else "tiny"
  c = config(name, size)
  c.train.batch, c.model.dtype = 8, "bfloat16"
  with target.using("tpu"):
    step = Step(c)
  state = jax.eval_shape(lambda: step.init(0, 1e-3))
  devices = sharding(topology)
  state = devices.placed(state, devices.state_specs(state))
  data = jax.eval_shape(lambda: batch(c))
  data = devices.placed(data, devices.batch_specs(data))
  compiled = step.train.lower(state, data).compile()
  assert compiled.memory_analysis().generated_code_size_in_bytes > 0
  text = compiled.as_text()
  assert ("all-reduce" in text) == (devices.mesh.size > 1)
  assert not programs.gathered(text)
  if size == "tiny" and "experts" in c.model.channels:
    c.train.batch //= devices.mesh.size
    own = programs.expected(step, state, jax.eval_shape(lambda: batch(c)))
    assert 0.9 < programs.products(text) / own <= 1
  if name in MIXERS:
    record_property("provenance", ["mixers", name, "tpu", topology])
