"""What a program costs on a TPU that is not here, by that TPU's own compiler.

libtpu compiles ahead of time on any Linux machine. The text of what it makes
says of most instructions how many cycles the compiler expects of them; a
step's are their sum, those of a loop as often as it turns (XLA's own
cost_analysis counts a loop once), and of a conditional's branches the longest.
`errors` says how far that is from what is possible, for programs of which that
is known. No chip was at hand to see where between these a step lies.

A program that does not fit is refused by the compiler. One that does still
leaves its arguments, results, temporaries and code in a chip's memory.
"""

import importlib.metadata
import importlib.util
import os
import re
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from arch import target
from train.sharding import Sharding
from train.step import Step

GIB = 2**30
TIGHT = 0.85  # of a chip's memory, from which on a program may not run


class Chip(NamedTuple):
  """
  Attributes:
    topology: as libtpu has it; accelerator: the same, as a host is told it.
    clock: cycles a second.
    peak: FLOP/s of products in bfloat16.
    bandwidth: bytes a second of its memory.
    memory: bytes that a program can have, of each chip.
    site: where it is to be had, for how long at once and a week, in hours.
  """

  topology: str
  accelerator: str
  clock: float
  peak: float
  bandwidth: float
  memory: float
  site: tuple[str, float, float | None]


# peaks and bandwidths: Google's pages of each; clock, and what is left of 16
# and 32 GB, as the compiler counts; sites: what their users and tools said in
# 2026, of both of Colab's chips alike
V5E = (1.5e9, 197e12, 819e9, 15.75 * GIB)
V6E = (1.75e9, 918e12, 1600e9, 31.25 * GIB)
CHIPS = {
  "v5e-1": Chip("v5e:1x1", "v5litepod-1", *V5E, ("Colab", 12.0, None)),
  "v5e-8": Chip("v5e:2x4", "v5litepod-8", *V5E, ("Kaggle", 9.0, 20.0)),
  "v6e-1": Chip("v6e:1x1", "v6e-1", *V6E, ("Colab, paid", 12.0, None)),
}


# both of the compiler's ways to say that
FULL = re.compile(
  r"temporaries \((?P<part>[\d.]+[KMGT])\) exceeds available HBM"
  r"|memory space hbm. Used (?P<whole>[\d.]+[KMGT]) of"
)


class Refused(ValueError):
  """A program that does not fit a chip; says how much it wants."""


class Cost(NamedTuple):
  """
  Attributes:
    seconds: as the compiler expects.
    memory: bytes that it takes of one chip.
    compiling: seconds that this took here.
    uncounted: how often instructions run of which the compiler says nothing.
  """

  seconds: float
  memory: float
  compiling: float
  uncounted: dict[str, int]


def devices(chip: Chip):
  """The chips, to compile for.

  Raises:
    ValueError: libtpu is missing, or JAX is too old to compile for one.
  """
  if not importlib.util.find_spec("libtpu"):
    raise ValueError(
      "the compiler for TPUs is not here: pip install libtpu (.[tpu] brings it)"
    )
  if jax.__version_info__ < (0, 8):
    raise ValueError(
      f"jax {jax.__version__} crashes where it compiles for a TPU that is not "
      "here: use 0.8 or newer, in an environment of its own"
    )
  import libtpu
  from jax.experimental import topologies

  os.environ |= {
    "TPU_SKIP_MDS_QUERY": "1",  # of what a host would be told, there is none
    "TPU_ACCELERATOR_TYPE": chip.accelerator,
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LIBRARY_PATH": libtpu.get_library_path(),
  }
  sides = map(int, chip.topology.partition(":")[2].split("x"))
  found = topologies.get_topology_desc(
    platform="tpu",
    topology_name=chip.topology,
    # of a chip alone some libtpu want to be told that it is
    chips_per_host_bounds=(*(min(n, 2) for n in sides), 1),
  )
  return np.asarray(found.devices).ravel()


def step(cfg, chip: Chip, devices, replicates: int = 0, own=False) -> Cost:
  """Of a training step of this config.

  Args:
    devices: the chip's.
    replicates: how many the step trains at once; 0 for a run by itself.
    own: whether each has a batch of its own.

  Raises:
    Refused: it does not fit.
    ValueError: it has a teacher, whose arrays no chip holds.
  """
  t = cfg.train
  if t.teacher:
    raise ValueError(f"train.teacher={t.teacher}: leave it out of an estimate")
  with target.using("tpu"):
    made = Step(cfg)
  R = (replicates,) if replicates else ()
  seed, lr = jnp.zeros(R, jnp.uint32), jnp.zeros(R)
  state = jax.eval_shape(lambda: made.init(seed, lr))
  shape = (*R * own, t.batch, t.length)
  kinds = {"tokens": jnp.int32, "targets": jnp.int32}
  kinds |= {"weights": jnp.float32, "reset": jnp.bool_}
  data = {
    name: jax.ShapeDtypeStruct(shape, kind) for name, kind in kinds.items()
  }
  placed = Sharding.fitting(
    t.model_devices, t.batch // t.accumulate, replicates, devices
  )
  state = placed.placed(state, placed.state_specs(state, made.layers))
  data = placed.placed(data, placed.batch_specs(data, replicates))
  return compiled(lambda: made.train.lower(state, data).compile(), chip)


def compiled(compile, chip: Chip) -> Cost:
  """Of what compile() makes."""
  start = time.perf_counter()
  try:
    program = compile()
  except jax.errors.JaxRuntimeError as error:
    wanted = FULL.search(str(error))
    if not wanted:
      raise
    size = wanted["whole"] or f"temporaries of {wanted['part']}"
    raise Refused(f"{size} of {chip.memory / GIB:g}G a chip") from error
  took = time.perf_counter() - start
  memory = program.memory_analysis()
  whole = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.generated_code_size_in_bytes
  )
  count, uncounted = cycles(program.as_text(), chip)
  peak = getattr(memory, "peak_memory_in_bytes", 0)
  return Cost(count / chip.clock, max(whole, peak), took, uncounted)


def cycles(text: str, chip: Chip) -> tuple[int, dict[str, int]]:
  """Cycles that the compiler expects of a program, and how often instructions
  run of which it says nothing, by their kind; a loop whose end depends on the
  data as often as it may turn at most, or once, and then it is one of these.

  Of a kernel it knows nothing: one that says what it computes and moves is
  counted at half the chip's peak or 70 % of its bandwidth, whichever takes
  longer, and one that does not is uncounted."""
  bodies, entry = {}, None
  for line in text.splitlines():
    head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
    if head:
      lines = bodies[head[2]] = []
      entry = head[2] if head[1] else entry
    elif line.startswith(" "):
      lines.append(line)
  uncounted = {}

  def total(name: str, times: int) -> int:
    """Of one turn of a computation that turns so many times."""
    found = 0
    for line in bodies[name]:
      op = re.search(r" = .*? ([\w\-]+)\(", line)
      op = op[1] if op else ""
      if op == "while":
        body = re.search(r"body=%?([\w.\-]+)", line)[1]
        n = turns(line, bodies)
        if n is None:
          n = 1
          uncounted["loop"] = uncounted.get("loop", 0) + times
        found += n * total(body, n * times)
      elif op == "conditional":
        branches = re.search(r"branch_computations=\{([^}]*)\}", line)[1]
        names = re.findall(r"[\w.\-]+", branches)
        found += max(total(branch, times) for branch in names)
      elif op == "call":
        found += total(re.search(r"to_apply=%?([\w.\-]+)", line)[1], times)
      elif known := re.search(r'estimated_cycles":"(\d+)"', line):
        found += int(known[1])
      elif told := KERNEL.search(line):
        flops, moved = map(int, told.groups())
        ideal = max(flops / (0.5 * chip.peak), moved / (0.7 * chip.bandwidth))
        found += round(chip.clock * ideal)
      elif op.removesuffix("-start") in SILENT and not FREE.search(line):
        kind = re.search(r"%?([a-z\-]+)[\w.\-]* = ", line)[1]  # of a fusion
        kind = "kernel" if "tpu_custom_call" in line else kind
        uncounted[kind] = uncounted.get(kind, 0) + times
    return found

  return total(entry, 1), uncounted


# instructions that work, and custom calls that only allocate or join
SILENT = set(
  "all-gather all-reduce all-to-all collective-permute convolution custom-call "
  "dot fusion gather reduce-scatter scatter sort".split()
)
KERNEL = re.compile(
  r'tpu_custom_call.*"cost_estimate":\{"flops":"?(\d+)"?.*?'
  r'"bytes_accessed":"?(\d+)'
)
FREE = re.compile(r'custom_call_target="(Allocate|Assume|ConcatBitcast)')


def turns(line: str, bodies: dict[str, list[str]]) -> int | None:
  """How often a loop turns at most: the number that its condition, or a fusion
  in it, compares with; None where there is none above 0."""
  condition = re.search(r"condition=%?([\w.\-]+)", line)[1]
  names = [condition]
  for own in bodies[condition]:
    names += re.findall(r"calls=%?([\w.\-]+)", own)
  ends = {
    int(n)
    for name in names
    for own in bodies[name]
    for n in re.findall(r"= s32\[\]\S* constant\((\d+)\)", own)
  }
  return max((n for n in ends if n > 0), default=None)


def errors(chip: Chip, devices) -> dict[str, float]:
  """Cycles that the compiler expects over the fewest that are possible, by the
  peak and the bandwidth, of programs that both are known of."""
  here = jax.sharding.SingleDeviceSharding(devices[0])

  def array(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=here)

  def product(M, K, N):
    moved = 2 * (M * K + K * N + M * N)
    ideal = max(2 * M * K * N / chip.peak, moved / chip.bandwidth)
    return jnp.matmul, (array(M, K), array(K, N)), ideal

  def scaled(dtype):
    x = array(4096, 4096, dtype=dtype)
    moved = 2 * x.size * x.dtype.itemsize
    return lambda x: 2 * x + 1, (x,), moved / chip.bandwidth

  programs = {
    "a large product": product(8192, 8192, 8192),
    "a small model's product": product(4096, 512, 1408),
    "2 x + 1 in float32": scaled(jnp.float32),
    "2 x + 1 in bfloat16": scaled(jnp.bfloat16),
  }
  found = {}
  for name, (function, args, ideal) in programs.items():
    run = jax.jit(function).lower(*args)
    found[name] = compiled(run.compile, chip).seconds / ideal
  return found


def libraries() -> str:
  """The versions that an estimate depends on."""
  names = "jax", "libtpu"
  return ", ".join(f"{n} {importlib.metadata.version(n)}" for n in names)
