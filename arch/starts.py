"""What parameters start from, where two files use it: functions (key, shape) ->
array.

d_in x d_out are the last two axes of a matrix.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx


def fan_in(scale: float = 1.0):
  """Normal with standard deviation scale / sqrt(d_in), cut at 2.27 of them."""
  return nnx.initializers.variance_scaling(
    scale**2, "fan_in", "truncated_normal"
  )


def uniform(bound: float):
  """Uniform in +-bound: of 1 / sqrt(d_in), a torch.nn.Linear's bias."""

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def uniform_fan_in(scale: float = 1.0):
  """Uniform in +-scale / sqrt(d_in): what torch.nn.Linear starts from."""
  return nnx.initializers.variance_scaling(
    scale**2 / 3, "fan_in", "uniform", in_axis=-2, out_axis=-1
  )


def xavier_uniform(gain: float = 1.0):
  """Uniform in +-gain sqrt(6 / (d_in + d_out)), as torch.nn.init has it."""
  return nnx.initializers.variance_scaling(gain**2, "fan_avg", "uniform")


def columns(*parts):
  """Maps that are one product start each by itself: pairs (init, d_out)."""

  def init(key, shape, dtype=jnp.float32):
    keys = jax.random.split(key, len(parts))
    return jnp.concatenate(
      [
        own(key, (*shape[:-1], width), dtype)
        for key, (own, width) in zip(keys, parts, strict=True)
      ],
      -1,
    )

  return init


def dt_bias(key, shape):
  """softplus(dt_bias) is log-uniform in [1e-3, 1e-1]."""
  low, high = math.log(1e-3), math.log(1e-1)
  dt = jnp.exp(jax.random.uniform(key, shape, minval=low, maxval=high))
  return dt + jnp.log(-jnp.expm1(-dt))


def decay_rate(key, shape):
  """exp(A_log) is uniform in (0, 16]."""
  # 1 - uniform is in (0, 1]: no logarithm of 0
  return jnp.log(16 * (1 - jax.random.uniform(key, shape)))
