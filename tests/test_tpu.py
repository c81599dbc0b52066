"""Every training step compiles ahead of time for TPUs, without one.

Tiny ones do, every mechanism of which bites. A mixer whose
code, and whose compiler, docs/provenance.json has a record of is not compiled
again, but for a few.
"""

import functools
import os

import jax
import programs
import pytest
from models import CONFIGS, MIXERS, batch, config, with_body

import configs
from arch import registry, target
from arch.vocabulary import WAYS
from train import provenance
from train.sharding import Sharding
from train.step import Step

libtpu = pytest.importorskip("libtpu")
if jax.__version_info__ < (0, 8):
  pytest.skip(
    "jax 0.7 crashes where it compiles for TPUs", allow_module_level=True
  )

# the delta rule; experts, and what a chip has of their products
ALWAYS = ["gated_deltanet", "compact"]


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
CASES += [("v6e:1x1", "zamba2")]  # one that shares a block

# what stands beside a mixer, in one that is quick to compile
SETTINGS = {
  "channels": "channel={}",
  "weights": "linear={}",
  "wiring": "wiring={}",
}
LOOP = ("model.loop.times=2", "model.loop.rank=2")
PATTERNS = {  # wirings that no field of the model names
  "parallel": ("mingru|lru",) * 3,
  "aside": (
    "mingru",
    {"mixer": "mingru", "share": "a", "aside": True},
    "mingru",
  ),
}


def part(kind, name):
  """A config with this file of arch/<kind>."""
  c = config("mingru")
  settings = [SETTINGS[kind].format(name)] if kind in SETTINGS else []
  if kind == "body":
    c = with_body(name)
  if kind == "vocab":
    module = registry.find(kind, name)
    settings = [f"{w}={name}" for w, k in WAYS.items() if hasattr(module, k)]
  if kind == "wiring" and name == "values":
    c = config("gla")
  if kind == "wiring" and name == "inject":
    settings = [*LOOP, "model.loop.inject=True", "model.loop.norms=True"]
  if kind == "wiring" and name in PATTERNS:
    c.model.pattern, settings = PATTERNS[name], []
    c.model.depth = len(c.model.pattern)
  for setting in settings:
    configs.put(c, name, setting, ("model",))
  return c


PARTS = [
  pytest.param(
    kind, name, marks=pytest.mark.recorded(kind, name, "tpu", "v5e:2x4")
  )
  for kind in provenance.AXES
  for name in registry.names(kind)
]


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
def test_a_training_step_compiles(topology, name, record_property):
  c = config(name)
  text = compiled(topology, c)
  if "experts" in c.model.channels:
    shares(topology, c, text)
  if name in MIXERS:
    record_property("provenance", ["mixers", name, "tpu", topology])


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_a_step_with_every_part_compiles(kind, name, record_property):
  compiled("v5e:2x4", part(kind, name))
  record_property("provenance", [kind, name, "tpu", "v5e:2x4"])


# widths that kernels take
KERNELS = {
  "attention": dict(head=16),
  "mamba2": dict(state=16, head=16),
  "gated_deltanet": dict(head=16),
  "rglru": dict(blocks=2),
  "mamba": {},
}


@pytest.mark.parametrize(
  ("topology", "name"),
  [("v5e:1x1", "attention"), *(("v5e:2x4", name) for name in KERNELS)],
)
def test_a_step_with_kernels_compiles(topology, name):
  """Each device runs those of its own rows, here with half of it made again."""
  c = config(name)
  c.model.dim, c.model.remat = 32, "auto"
  c.model.mixers[name] = {**c.model.mixers.get(name, {}), **KERNELS[name]}
  assert "tpu_custom_call" in compiled(topology, c)


def compiled(topology, c) -> str:
  """The text of a training step, in which devices share no numbers but sums."""
  c.train.batch, c.model.dtype = 8, "bfloat16"
  with target.using("tpu"):
    step = Step(c)
  state = jax.eval_shape(lambda: step.init(0, 1e-3))
  devices = sharding(topology)
  state = devices.placed(state, devices.state_specs(state))
  data = jax.eval_shape(lambda: batch(c))
  data = devices.placed(data, devices.batch_specs(data))
  program = step.train.lower(state, data).compile()
  assert program.memory_analysis().generated_code_size_in_bytes > 0
  text = program.as_text()
  assert ("all-reduce" in text) == (devices.mesh.size > 1)
  assert not programs.gathered(text)
  return text


def shares(topology, c, text):
  """A chip has its share of the products."""
  c.train.batch = 8 // sharding(topology).mesh.size
  with target.using("tpu"):
    step = Step(c)
  state = jax.eval_shape(lambda: step.init(0, 1e-3))
  own = programs.expected(step, state, jax.eval_shape(lambda: batch(c)))
  assert 0.9 < programs.products(text) / own <= 1
