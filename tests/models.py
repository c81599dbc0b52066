"""What the suites share: every architecture, found by its file."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import arch
from arch import arrays, registry, target
from arch.pattern import places

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(p.stem for p in (ROOT / "configs").glob("[a-z]*.py"))
MIXERS = registry.names("mixers")
CHANNELS = registry.names("channels")
SYMBOLS = 17


def config(name, size="tiny"):
  """An ordinary config, unlocked, with a vocabulary where it has none."""
  c = importlib.import_module(f"configs.{name}").get_config(size)
  c.unlock()
  if not c.model.vocab.size:
    c.model.vocab.size = SYMBOLS
  return c


def _alone(name):
  c = config(name).model
  found = places(c.pattern, c.depth, c.channel)
  return len({mixer for place in found for mixer in place.mixers}) == 1


# of one mixer: what holds for these holds, block by block, for hybrids
ALONE = [name for name in CONFIGS if _alone(name)]
# hybrids train and grow as the mixers do that they are made of, but for what is
# theirs: parallel mixers, and blocks that are shared and aside
DISTINCT = sorted({*ALONE, "hymba", "zamba2"})


def with_body(name):
  """The first config that has this body."""
  return next(c for c in map(config, CONFIGS) if c.model.body == name)


def unrolled(monkeypatch, blocks):
  """Stacks of at most so many blocks are unrolled."""
  like = target.TARGETS["cpu"]._replace(unroll=blocks)
  monkeypatch.setitem(target.TARGETS, "cpu", like)


def build(c, seed=0):
  made = jax.jit(
    lambda: arrays.pure(arch.build(c.model, rngs=arrays.rngs(seed)))
  )()
  return arrays.fill(arch.abstract(c.model), *made)


def tokens(c, batch=2, length=None, seed=0):
  """B T random symbols, the start symbol among them."""
  shape = (batch, length or c.train.length)
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.integers(0, c.model.vocab.size + 1, shape), jnp.int32)


def batch(c, seed=0):
  """A training batch, with resets and unscored positions."""
  rng = np.random.default_rng(seed + 1)
  shape = (c.train.batch, c.train.length)
  targets = rng.integers(0, c.model.vocab.size, shape)
  return {
    "tokens": tokens(c, *shape, seed),
    "targets": jnp.asarray(targets, jnp.int32),
    "weights": jnp.asarray(rng.random(shape) < 0.8, jnp.float32),
    "reset": jnp.asarray(rng.random(shape) < 0.2),
  }


def noisy(model, scale=0.1, seed=0):
  """The model with noise on every parameter, so that no zero hides a bug."""
  params, buffers = arrays.pure(model)
  rng = np.random.default_rng(seed)

  def more(p):
    noise = scale * rng.standard_normal(p.shape)
    return jnp.asarray(p + noise, p.dtype)

  return arrays.fill(model, jax.tree.map(more, params), buffers)


def close(a, b, tolerance=1e-5):
  """Equal within tolerance of the largest reference value, leaf by leaf."""

  def check(x, y):
    x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
    np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * largest(y))

  jax.tree.map(check, a, b)


def held(record_property, kind, name, source, ours, theirs, fields=None):
  """Ours are theirs within 1e-5, and the record of a part may say so."""
  close(ours, theirs)
  about = {
    "source": source,
    "fields": fields or {},
    "tolerance": 1e-5,
    "errors": {"value": distance(ours, theirs)},
  }
  record_property("provenance", [kind, name, "cases", about])


def distance(a, b) -> float:
  """The largest difference of a leaf, in units of its largest value in b."""

  def of(x, y):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    assert x.shape == y.shape, (x.shape, y.shape)
    return float(np.max(np.abs(x - y)) / largest(y))

  return max(jax.tree.leaves(jax.tree.map(of, a, b)))


def largest(y):
  return max(1e-3, np.max(np.abs(y), initial=0.0, where=np.isfinite(y)))
