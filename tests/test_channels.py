"""Properties of every channel mixer, and what each starts from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import CHANNELS, close

from arch import registry
from arch.channels import rwkv

D, DEPTH, B, T = 6, 4, 2, 7


def make(name, layer=1, dtype="float32", **fields):
  """The channel mixer with noise on every parameter."""
  module = registry.find("channels", name)
  cfg = module.Config(dim=D, depth=DEPTH, length=T, dtype=dtype, **fields)
  made = module.Channel(cfg, layer=jnp.int32(layer), rngs=nnx.Rngs(0))
  graph, params, rest = nnx.split(made, nnx.Param, ...)

  def wave(p):
    return 0.3 * jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape)

  params = jax.tree.map(lambda p: p + wave(p), params)
  return nnx.merge(graph, params, rest)


def inputs(dtype=jnp.float32):
  x = jax.random.normal(jax.random.key(1), (B, T, D)).astype(dtype)
  reset = jnp.zeros((B, T), bool).at[0, 3].set(True).at[1, 0].set(True)
  return x, reset


def compiled(name, dtype="float32"):
  """The channel mixer, and (x, reset, state) -> y, state of it."""
  channel = make(name, dtype=dtype)
  graph, arrays = nnx.split(channel)

  @jax.jit
  def call(x, reset, state):
    return nnx.merge(graph, arrays)(x, reset, state)[:2]

  return channel, call


@pytest.mark.parametrize("name", CHANNELS)
def test_splits_forgets_and_is_close_in_bfloat16(name):
  channel, call = compiled(name)
  x, reset = inputs()
  # as bfloat16 has it, so that both choose the same of what there is to choose
  x = x.astype(jnp.bfloat16).astype(jnp.float32)
  whole, last = call(x, reset, channel.init_state(B))
  state, steps = channel.init_state(B), []
  for t in range(T):
    y, state = call(x[:, t : t + 1], reset[:, t : t + 1], state)
    steps.append(y)
  close(jnp.concatenate(steps, 1), whole)
  close(state, last)

  other, _ = call(x.at[0, :3].set(9.0), reset, channel.init_state(B))
  close(other[0, 3:], whole[0, 3:], 1e-6)
  fresh, _, _ = jax.eval_shape(channel, x, None, None)
  assert fresh.shape == whole.shape

  low, call = compiled(name, "bfloat16")
  with jax.numpy_dtype_promotion("strict"):
    y, _ = call(x.astype(jnp.bfloat16), reset, low.init_state(B))
  assert y.dtype == jnp.bfloat16
  close(y, whole, 0.05)


def test_rwkv_is_its_formula():
  channel = make("rwkv")
  x, reset = (np.asarray(a, np.float64) for a in inputs())
  m, up, down = (
    np.asarray(p[...], np.float64)
    for p in (channel.mix, channel.up.weight, channel.down.weight)
  )
  y = np.zeros_like(x)
  for b in range(B):
    before = np.zeros(D)
    for t in range(T):
      before = np.zeros(D) if reset[b, t] else before
      k = x[b, t] + m * (before - x[b, t])
      y[b, t] = np.maximum(k @ up, 0) ** 2 @ down
      before = x[b, t]
  close(channel(*inputs(), None)[0], y)


@pytest.mark.parametrize("layer", [0, 3])
def test_rwkv_starts(layer):
  cfg = rwkv.Config(dim=64, depth=DEPTH, length=T)
  channel = rwkv.Channel(cfg, layer=jnp.int32(layer), rngs=nnx.Rngs(0))
  close(channel.mix[...], 1 - (np.arange(64) / 64) ** (1 - layer / DEPTH) ** 4)
  up = channel.up.weight[...]
  assert up.shape == (64, 256) and not jnp.any(channel.down.weight[...])
  close(up @ up.T, np.eye(64))


@pytest.mark.parametrize("name", ["gelu", "geglu", "relu2", "rwkv", "swiglu"])
def test_bad_width(name):
  with pytest.raises(ValueError, match="width=0"):
    make(name, width=0)
