"""What is true of the mixers over the delta rule alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import close

from arch import layers
from arch.mixers import deltanet, deltaproduct, gated_deltanet, kda, rwkv7

SHELL = dict(depth=4, length=8)


def make(module, layer=0, **fields):
  cfg = module.Config(**SHELL, **fields)
  return module.Mixer(cfg, layer=jnp.int32(layer), rngs=nnx.Rngs(0))


def test_one_step_of_deltaproduct_is_gated_deltanet():
  fields = dict(dim=8, head=3, heads=2, key_heads=1, neg_eigval=True)
  x = jax.random.normal(jax.random.key(0), (2, 5, 8))
  reset = jnp.zeros((2, 5), bool).at[0, 2].set(True)
  one = make(gated_deltanet, **fields)
  many = make(deltaproduct, steps=1, **fields)
  nnx.update(many, nnx.state(one))
  close(many(x, reset, None), one(x, reset, None))


def test_negative_eigenvalues():
  """At beta = 2 what a state answers to the key turns its sign."""
  for neg_eigval, factor in ((False, 0), (True, -1)):
    mixer = make(
      deltanet, dim=4, head=4, conv=1, neg_eigval=neg_eigval, eps=1e-5
    )
    mixer.beta.weight[...] = jnp.full((4, 1), 30.0)  # sigmoid is 1
    values = mixer.qkv.weight[...].at[:, 8:].set(0)
    mixer.qkv.weight[...] = values  # only the state is read, nothing is written
    mixer.conv.weight[...] = jnp.ones((1, 12))
    S = jnp.ones((1, 1, 4, 4))
    state = {"conv": mixer.init_state(1)["conv"], "S": S}
    x = jnp.full((1, 1, 4), 100.0)
    k = jax.nn.silu(mixer.qkv(x)[0, 0, 4:8])
    k = layers.unit(k)
    _, new, _ = mixer(x, None, state)
    answer = k @ S[0, 0]
    assert jnp.abs(k @ new["S"][0, 0] - factor * answer).max() < 1e-4


@pytest.mark.parametrize("layer", [0, 3])
def test_rwkv7_starts(layer):
  """Number by number what the parity test sees in two moments."""
  D, K, L = 12, 4, SHELL["depth"]
  mixer = make(rwkv7, layer=layer, dim=D, head=K)
  n = np.arange(D)
  early = 1 - layer / L
  for row, power in zip(mixer.mix[...], (2, 9, 7, 7, 9, 2), strict=True):
    close(row, 1 - (n / D) ** (power / 10 * early))
  z = np.tile([-1, -1 / 9, 1 / 9, 1], 3)
  www = -6 + 6 * (n / 11) ** (1 + (layer / (L - 1)) ** 0.3)
  close(mixer.decay.bias[...], www + 0.5 + 2.5 * z)
  linear = n / 11 - 0.5
  close(mixer.rate.bias[...], -0.19 + 0.3 * z + 0.4 * linear)
  close(mixer.value.bias[...], 0.73 - 0.4 * linear)
  close(mixer.k_k[...], 0.71 - 0.1 * linear)
  assert mixer.decay.down.weight.shape == (D, 32)
  close(mixer.norm[...], np.full(D, ((1 + layer) / L) ** 0.7))


@pytest.mark.parametrize(
  "module, fields, numbers",
  [
    (deltanet, dict(dim=24, head=5), ("5", "24")),
    (deltanet, dict(dim=24, head=6, conv=0), ("conv=0", "positive")),
    (gated_deltanet, dict(dim=24, heads=3, key_heads=2), ("2", "3")),
    (deltaproduct, dict(dim=24, steps=0), ("steps=0", "positive")),
    (
      deltaproduct,
      dict(dim=24, heads=0),
      ("deltaproduct", "heads=0", "positive"),
    ),
    (kda, dict(dim=24, heads=0), ("heads=0", "positive")),
    (rwkv7, dict(dim=24, head=5), ("5", "24")),
    (rwkv7, dict(dim=24, head=6, gate_rank=0), ("gate_rank=0", "positive")),
  ],
)
def test_refuses(module, fields, numbers):
  with pytest.raises(ValueError) as error:
    module.Config(**SHELL, **fields)
  for number in numbers:
    assert number in str(error.value)
