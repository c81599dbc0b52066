"""What kernels of a TPU do over many chunks, and where they are used."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from models import close

from arch import layers, target
from arch.recurrence import (
  conv_kernel,
  delta,
  delta_kernel,
  diagonal,
  diagonal_kernel,
  gated,
  gated_kernel,
  selective_kernel,
)


def both(f, *args):
  def loss(*args):
    y = f(*args)
    return jnp.sum(jnp.sin(y.astype(jnp.float32))), y

  every = tuple(range(len(args)))
  (_, y), grads = jax.jit(jax.value_and_grad(loss, every, has_aux=True))(*args)
  return [x.astype(jnp.float32) for x in (y, *jax.tree.leaves(grads))]


@pytest.mark.parametrize("T", [1, 128, 300])
def test_a_diagonal_scan(T):
  keys = jax.random.split(jax.random.key(T), 3)
  a = jnp.tanh(jax.random.normal(keys[0], (2, T, 16)) + 2)
  a = a.at[:, T // 2].set(0)
  b, h = (
    jax.random.normal(k, s)
    for k, s in zip(keys[1:], (a.shape, (2, 16)), strict=True)
  )

  def kernels(a, b, h):
    return diagonal_kernel.scan(a, b, h, interpret=True)

  def formula(a, b, h):
    return diagonal.reference(a, b, state=h)[0]

  close(both(kernels, a, b, h), both(formula, a, b, h), 1e-5)


def test_a_delta_rule_that_makes_its_keys():
  T, H, K, V = 21, 3, 16, 32
  keys = jax.random.split(jax.random.key(0), 6)
  shapes = [(2, T, H, K)] * 2 + [(2, T, H, V)] + [(2, T, H)] * 2
  shapes += [(2, H, K, V)]
  q, k, v, beta, w, S = map(jax.random.normal, keys, shapes)
  beta, w = jax.nn.sigmoid(beta), jax.nn.log_sigmoid(w)
  reset = jnp.zeros((2, T), bool).at[:, 11].set(True)

  def kernels(q, k, v, beta, w, S):
    w = jnp.where(reset[..., None], -jnp.inf, w)
    o, S = delta_kernel.chunked(q, k, v, w, None, S, beta, 8, interpret=True)
    return jnp.concatenate([o.ravel(), S.ravel()])

  def plain(q, k, v, beta, w, S):
    o, S = delta.corrected(q, k, v, beta, w, reset, S)
    return jnp.concatenate([o.ravel(), S.ravel()])

  args = q, k, v, beta, w, S
  close(both(kernels, *args), both(plain, *args), 1e-5)


def test_a_gated_recurrence_with_its_step_and_skip():
  T, H, G, K, V = 21, 4, 2, 16, 32
  keys = jax.random.split(jax.random.key(0), 7)
  shapes = [(2, T, G, K)] * 2 + [(2, T, H, V)] + [(2, T, H)] * 2
  shapes += [(H,), (2, H, K, V)]
  q, k, x, step, g, skip, S = map(jax.random.normal, keys, shapes)
  g = jax.nn.log_sigmoid(g).at[:, 11].set(-jnp.inf)

  def kernels(q, k, x, step, skip, g, S):
    skip = jnp.broadcast_to(skip, step.shape)
    y, S = gated_kernel.chunked(q, k, x, g, S, step, skip, 8, interpret=True)
    return jnp.concatenate([y.ravel(), S.ravel()])

  def plain(q, k, x, step, skip, g, S):
    y, S = gated.stepped(q, k, x, step, skip, g, None, S)
    return jnp.concatenate([y.ravel(), S.ravel()])

  args = q, k / 4, x, step, skip, g, S
  close(both(kernels, *args), both(plain, *args), 1e-5)


@pytest.mark.parametrize("T, negative", [(1, False), (300, False), (140, True)])
def test_a_selective_scan(T, negative):
  keys = jax.random.split(jax.random.key(T), 6)
  shapes = [(2, T, 16)] * 2 + [(16, 3)] + [(2, T, 3)] * 2 + [(2, 16, 3)]
  x, dt, A, b, c, h = map(jax.random.normal, keys, shapes)
  dt, A = jax.nn.softplus(dt), -jnp.exp(A)
  reset = jnp.zeros((2, T), bool).at[:, T // 2].set(True)

  def kernels(x, dt, A, b, c, h):
    keep = jnp.where(reset, 0.0, 1.0)
    y, h = selective_kernel.selective(
      x, dt, A, b, c, keep, h, negative, interpret=True
    )
    return jnp.concatenate([y.ravel(), h.ravel()])

  def formula(x, dt, A, b, c, h):
    y, h = diagonal.reference_selective(x, dt, A, b, c, reset, h, negative)
    return jnp.concatenate([y.ravel(), h.ravel()])

  args = x, dt, A, b, c, h
  close(both(kernels, *args), both(formula, *args), 1e-5)


@pytest.mark.parametrize(
  "T, width, bias, silu, packed, dtype",
  [
    (3, 4, True, False, False, "float32"),
    (131, 4, True, True, True, "float32"),
    (300, 3, False, True, True, "bfloat16"),
  ],
)
def test_a_short_convolution(T, width, bias, silu, packed, dtype):
  kw = dict(dtype=dtype, rngs=nnx.Rngs(0), bias=bias)
  conv = layers.ShortConv(48, width, **kw)
  x = jax.random.normal(jax.random.key(0), (2, T, 48), dtype)
  assert not conv_kernel.refused(x, width)
  reset = jax.random.bernoulli(jax.random.key(1), 0.2, (2, T))
  document = jnp.cumsum(reset * packed, 1, dtype=jnp.int32)
  reset = reset if packed else None

  def kernels(conv, x):
    weight = conv.weight[...].astype(dtype)
    own = conv.bias[...].astype(dtype) if bias else 0 * weight[0]
    return conv_kernel.convolved(x, weight, own, document, silu, True)

  def plain(conv, x):
    return conv(x, reset, None, silu)[0]

  found, expected = both(kernels, conv, x), both(plain, conv, x)
  close(found, expected, 1e-5 if dtype == "float32" else 4e-2)


def test_what_the_kernels_do_not_take_is_told():
  x = jax.ShapeDtypeStruct((1, 2, 48), jnp.float32)
  assert conv_kernel.refused(x, 4) == "4 taps"
  x = jax.ShapeDtypeStruct((1, 300, 7), jnp.float32)
  assert "7 channels" in conv_kernel.refused(x, 4)
  assert "7 channels" in diagonal_kernel.refused(x)


def test_they_may_be_left_out(monkeypatch):
  with target.using("tpu"):
    assert target.now().kernels
    monkeypatch.setenv(target.KERNELS, "0")
    assert not target.now().kernels and target.now().name == "tpu"
