"""Speed of the one training step, of decoding, and of the recurrences.

Every time is the least of several repeats, so that another program's moment
on the machine does not count; compiling is timed apart, never from a cache.

  FLOP/s   training FLOPs a token (arch.count) x tokens/s: the backward pass is
           taken as twice the forward one, recomputation is not counted
  memory   bytes of the compiled step: arguments, results and temporaries, of
           one device, or of a CPU's together
  decode   greedy, batch 1, from a state that is carried and donated
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import arch
from arch import arrays, recurrence, registry, vocabulary
from arch.product import mixed
from train import platform, sizes
from train.sharding import Sharding
from train.step import Step


def resize(cfg, *, dim, depth, length, batch, symbols, dtype):
  """A config at another width and depth, its other widths in proportion.

  A pattern that is longer than `depth` keeps all of its blocks.
  """
  cfg = cfg.copy_and_resolve_references().unlock()
  second = sizes.get(cfg, cfg.match.size)
  if cfg.match.grows:
    sizes.put(cfg, cfg.match.size, round(second * dim / cfg.model.dim))
  cfg.model.dim = dim
  cfg.model.depth = max(depth, len(cfg.model.pattern))
  cfg.model.vocab.size = symbols
  cfg.model.dtype = dtype
  return reshape(cfg, length, batch)


def reshape(cfg, length: int, batch: int):
  """The same model, trained on other batches."""
  cfg = cfg.copy_and_resolve_references().unlock()
  cfg.model.length = cfg.train.length = length
  cfg.train.batch = batch
  return cfg


def measure(cfg, peak: float, seconds: float = 3.0) -> dict:
  """One architecture's row: sizes, compile time, speed and memory.

  Args:
    peak: FLOP/s of matrix products on this machine.
    seconds: how long to repeat each thing that is timed.
  """
  step = Step(cfg)
  count = arch.count(step.model, cfg.train.length)
  state, batch = placed(step, cfg)
  start = time.perf_counter()
  train = step.train.lower(state, batch).compile()
  compiling = time.perf_counter() - start
  memory = train.memory_analysis()  # of one device
  shared = jax.default_backend() == "cpu"
  devices = state["step"].sharding.num_devices if shared else 1
  took, state = training(train, state, batch, seconds)
  rate = cfg.train.batch * cfg.train.length / took
  achieved = count.training * rate
  return {
    "dim": cfg.model.dim,
    "depth": cfg.model.depth,
    "length": cfg.train.length,
    "batch": cfg.train.batch,
    "symbols": cfg.model.vocab.size,
    "dtype": cfg.model.dtype,
    "params": count.params,
    "compile_seconds": compiling,
    "step_seconds": took,
    "tokens_per_second": rate,
    "flops_per_second": achieved,
    "share_of_peak": achieved / peak,
    "memory_bytes": devices
    * (
      memory.argument_size_in_bytes
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes
      + memory.temp_size_in_bytes
    ),
    "decode_tokens_per_second": decoding(step.model, state, seconds),
  }


def beside(cfg, steps, seconds: float = 3.0) -> Iterator[dict]:
  """Rows of other steps, each with the least seconds of it and of ours, which
  take turns: a machine's rate may swing by more than they differ.

  Args:
    steps: pairs of a row and a function that makes a step, or None.
  """
  step = Step(cfg)
  state, batch = placed(step, cfg)

  def own():
    nonlocal state
    state = jax.block_until_ready(step.train(state, batch)[0])

  found = list(steps)
  calls = [own, *(call for _, call in found if call)]
  best = [math.inf] * len(calls)
  for call in calls:
    call()
  rounds, end = 0, time.perf_counter() + seconds * len(calls)
  while rounds < 3 or time.perf_counter() < end:
    rounds += 1
    for i, call in enumerate(calls):
      start = time.perf_counter()
      call()
      best[i] = min(best[i], time.perf_counter() - start)
  tokens, ours, *theirs = cfg.train.batch * cfg.train.length, *best
  for row, call in found:
    if call:
      took = theirs.pop(0)
      row |= {"step_seconds": took, "ours_seconds": ours}
      row |= {"tokens_per_second": tokens / took}
    yield row


def growth(cfg, lengths, seconds: float = 3.0) -> Iterator[dict]:
  """Step times at each length, all with as many tokens as the longest one.

  Of that there is one sequence a device, so that all of them work.
  """
  devices = jax.device_count() // cfg.train.model_devices
  for length in lengths:
    own = reshape(cfg, length, devices * (max(lengths) // length))
    step = Step(own)
    state, batch = placed(step, own)
    took, _ = training(step.train, state, batch, seconds)
    yield {"length": length, "batch": own.train.batch, "step_seconds": took}


def placed(step: Step, cfg):
  """A training state and a batch, on the devices that would train it."""
  sharding = Sharding.fitting(cfg.train.model_devices, cfg.train.batch)
  state = sharding.state(step.init(0, cfg.train.lr), step.layers)
  return state, sharding.batch(random_batch(cfg))


def random_batch(cfg) -> dict:
  """Uniform symbols, a document's start at one position in 256."""
  shape = (cfg.train.batch, cfg.train.length)
  rng = np.random.default_rng(0)
  tokens, targets = rng.integers(0, cfg.model.vocab.size, (2, *shape), np.int32)
  return {
    "tokens": jnp.asarray(tokens),
    "targets": jnp.asarray(targets),
    "weights": jnp.ones(shape),
    "reset": jnp.asarray(rng.random(shape) < 1 / 256),
  }


def training(train: Callable, state, batch, seconds: float):
  """Seconds of a step, and the state after the last one."""
  return fastest(lambda state: train(state, batch)[0], state, seconds)


def decoding(model, state, seconds: float) -> float:
  """Tokens a second with the weights of a training state."""
  weights = state["params"], state["buffers"]
  model = arrays.fill(model, *jax.device_put(weights, jax.devices()[0]))
  graph, leaves = arrays.split(model)

  @functools.partial(jax.jit, donate_argnums=1)
  def one(leaves, carried):
    token, memory = carried
    logits, memory = arrays.join(graph, leaves)(token, state=memory)
    return jnp.argmax(logits, -1).astype(jnp.int32), memory

  memory = arrays.init_state(graph, leaves, 1)
  start = jnp.zeros((1, 1), jnp.int32), memory
  took, _ = fastest(lambda c: one(leaves, c), start, seconds, calls=16)
  return 1 / took


def mixer(cfg, name: str, T: int = 2048, seconds: float = 1.0) -> dict:
  """Value and gradient of one mixer alone, with its norm: 1 x T tokens of
  width 256, in heads of 64 where its config sizes them.

  Returns:
    seconds, and memory_bytes of what the compiled program keeps on the way.
  """
  cfg = resize(
    cfg, dim=256, depth=1, length=T, batch=1, symbols=2, dtype="float32"
  )
  cfg.model.pattern, cfg.model.channel, cfg.model.depth = (name,), "none", 1
  fields = cfg.model.mixers.get(name, {})
  if "head" in fields:
    fields.head = 64
  params, buffers = arrays.pure(arch.build(cfg.model, rngs=nnx.Rngs(0)))
  model = arch.abstract(cfg.model)
  x = jax.random.normal(jax.random.key(0), (1, T, 256))

  def value(params, x):
    return jnp.sum(jnp.sin(arrays.fill(model, params, buffers).mix(x)[0]))

  run = jax.jit(jax.value_and_grad(value, (0, 1)))
  run = run.lower(params, x).compile()
  took, _ = fastest(lambda _: run(params, x), None, seconds)
  memory = run.memory_analysis().temp_size_in_bytes
  return {"seconds": took, "memory_bytes": memory}


def kernels(seconds: float = 1.0) -> Iterator[dict]:
  """Value and gradient of each recurrence: its reference, its fast twins.

  T = 2048, batch 1, 4 heads of K = V = 64; the diagonal ones D = 256, of which
  some have N = 16. Of each the seconds, and the bytes that the compiled program
  keeps on the way. A formula that would keep more than a quarter of the memory,
  as that of a long convolution, is not run: its seconds are None.
  """
  most = platform.machine()["memory_bytes"] / 4
  for name, (functions, example) in recurrence.twins().items():
    keys = iter(jax.random.split(jax.random.key(0), 64))

    def draw(*shape, keys=keys):
      return jax.random.normal(next(keys), shape)

    for label, inputs in example(draw, 1, 2048, 4, 64).items():
      if label.partition(",")[0] != name:
        continue
      times = {
        twin: both(function, inputs, seconds, most)
        for twin, function in functions.items()
      }
      for twin in times.keys() - {"reference"}:
        yield {
          "recurrence": label,
          "twin": twin,
          "reference": times["reference"],
          "fast": times[twin],
        }


def losses(
  D: int, V: int, B: int, T: int, dtype: str, seconds: float = 1.0
) -> Iterator[dict]:
  """Value and gradient of the loss of B T features by every way out, untied, of
  targets of Zipf's law; first by all logits of `full` at once."""
  chances = 1 / np.arange(1, V + 1)
  rng = np.random.default_rng(0)
  targets = rng.choice(V, (B, T), p=chances / chances.sum())
  targets = jnp.asarray(targets, jnp.int32)
  kind = "float32" if dtype == "mixed" else dtype
  x = jax.random.normal(jax.random.key(0), (B, T, D), kind)

  def whole(vocab, x):
    logs = jax.nn.log_softmax(vocab.logits(x))
    return -jnp.mean(jnp.take_along_axis(logs, targets[..., None], -1))

  def chunked(vocab, x):
    return vocab.loss(x, targets, jnp.ones((B, T)))

  outputs = [
    name
    for name in registry.names("vocab")
    if hasattr(registry.find("vocab", name), vocabulary.WAYS["output"])
  ]
  for name, label, loss in (
    ("full", "all logits at once", whole),
    *((name, name, chunked) for name in outputs),
  ):
    told = {"input": "full", "output": name, "size": V, "tied": False}
    cfg = SimpleNamespace(dim=D, compute=kind, positions=0, vocab=told)
    vocab = vocabulary.Vocab(cfg, rngs=nnx.Rngs(0))
    graded = jax.value_and_grad(loss, (0, 1), allow_int=True)
    with mixed(dtype == "mixed"):
      run = jax.jit(graded).lower(vocab, x).compile()
    took, _ = fastest(lambda _, run=run, v=vocab: run(v, x), None, seconds)
    params = jax.tree.leaves(nnx.state(vocab.readout, nnx.Param))
    yield {
      "output": label,
      "params": sum(p.size for p in params),
      "seconds": took,
      "memory_bytes": run.memory_analysis().temp_size_in_bytes,
    }


def both(function: Callable, inputs: dict, seconds: float, most: float) -> dict:
  """Value and gradient for every input: seconds, None where it would keep more
  bytes than `most`, and memory_bytes."""

  def value(inputs):
    return jnp.sum(jnp.sin(jax.tree.leaves(function(**inputs))[0]))

  run = jax.jit(jax.value_and_grad(value)).lower(inputs).compile()
  memory = run.memory_analysis().temp_size_in_bytes
  if memory > most:
    return {"seconds": None, "memory_bytes": memory}
  took, _ = fastest(lambda _: run(inputs), None, seconds)
  return {"seconds": took, "memory_bytes": memory}


def fastest(function: Callable, state, seconds: float, calls: int = 1):
  """The least seconds of state = function(state), and the last state.

  Args:
    seconds: how long to repeat, after one call to warm up; three at least.
    calls: between two readings of the clock.
  """
  state = jax.block_until_ready(function(state))
  best, repeats, end = math.inf, 0, time.perf_counter() + seconds
  while repeats < 3 or time.perf_counter() < end:
    start = time.perf_counter()
    for _ in range(calls):
      state = function(state)
    jax.block_until_ready(state)
    best = min(best, (time.perf_counter() - start) / calls)
    repeats += 1
  return best, state
