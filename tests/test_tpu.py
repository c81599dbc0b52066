"""Every tiny training step compiles ahead of time for TPUs, without one."""

import os

import jax
import pytest
from models import CONFIGS, MIXERS, batch, config

from train.sharding import Sharding
from train.step import Step

libtpu = pytest.importorskip("libtpu")


@pytest.fixture(scope="module", params=["v5e:2x4", "v6e:1x1"])
def sharding(request):
  from jax.experimental import topologies

  os.environ["TPU_SKIP_MDS_QUERY"] = "1"
  os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # one a test worker
  os.environ["TPU_LIBRARY_PATH"] = libtpu.get_library_path()
  found = topologies.get_topology_desc(
    platform="tpu", topology_name=request.param
  )
  return request.param, Sharding(devices=found.devices)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_training_step_compiles(name, sharding, monkeypatch, record_property):
  # what is traced is what a TPU would be given
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  topology, sharding = sharding
  c = config(name)
  c.train.batch, c.model.dtype = 8, "bfloat16"
  step = Step(c)
  state = jax.eval_shape(lambda: step.init(0, 1e-3))
  state = sharding.placed(state, sharding.state_specs(state))
  data = jax.eval_shape(lambda: batch(c))
  data = sharding.placed(data, sharding.batch_specs(data))
  compiled = step.train.lower(state, data).compile()
  assert compiled.memory_analysis().temp_size_in_bytes > 0
  if name in MIXERS:
    record_property("provenance", ["mixers", name, "tpu", topology])
