"""What each published mixer starts from, and what it refuses."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import close

from arch.mixers import (
  gated_deltanet,
  hgrn,
  hyena,
  lru,
  mamba,
  mamba2,
  mingru,
  minlstm,
  rglru,
  s4d,
  s5,
  shortconv,
  slstm,
)

SHELL = dict(depth=4, length=8)


def make(module, **fields):
  cfg = module.Config(**{**SHELL, **fields})
  return module.Mixer(cfg, layer=jnp.int32(0), rngs=nnx.Rngs(0))


def call(mixer, *args):
  graph, arrays = nnx.split(mixer)
  return jax.jit(lambda arrays, args: nnx.merge(graph, arrays)(*args))(
    arrays, args
  )


def uniform(x, low, high):
  """x fills [low, high] evenly: its ends and its first two moments."""
  x = np.ravel(x)
  span = high - low
  assert low - 1e-3 * span <= x.min() < low + 0.05 * span
  assert high - 0.05 * span < x.max() <= high + 1e-3 * span
  assert abs(x.mean() - (low + high) / 2) < 0.05 * span
  assert abs(x.std() - span / 12**0.5) < 0.03 * span


STEPS = {
  mamba: dict(dim=256),
  mamba2: dict(dim=256, head=1, state=2),
  gated_deltanet: dict(dim=4, head=1, heads=512),
}


@pytest.mark.parametrize("module", STEPS, ids=lambda m: m.__name__[12:])
def test_steps_are_log_uniform(module):
  mixer = make(module, **STEPS[module])
  dt = jax.nn.softplus(mixer.dt_bias[...])
  uniform(jnp.log(dt), np.log(1e-3), np.log(1e-1))


def test_decays():
  A = jnp.exp(make(mamba, dim=3, state=5).A_log[...])
  close(A, np.tile(np.arange(1, 6), (6, 1)))
  uniform(jnp.exp(make(mamba2, **STEPS[mamba2]).A_log[...]), 1, 16)
  A_log = make(gated_deltanet, **STEPS[gated_deltanet]).A_log[...]
  uniform(jnp.exp(A_log), 0, 16)
  assert jnp.isfinite(A_log).all()
  decay = make(rglru, dim=512).decay[...]
  uniform(jnp.exp(-8 * jax.nn.softplus(decay)), 0.9, 0.999)


@pytest.mark.parametrize("module", [mamba, mamba2], ids=lambda m: m.__name__)
def test_output_is_scaled_by_depth(module):
  for depth in (1, 16):
    mixer = make(module, dim=64, depth=depth)
    bound = (128 * depth) ** -0.5
    uniform(mixer.out_proj.weight[...], -bound, bound)
    uniform(mixer.in_proj.weight[...], -1 / 8, 1 / 8)


def test_rglru_weights():
  mixer = make(rglru, dim=64, width=96, blocks=4, conv=4, depth=8)
  for weight, variance in (
    (mixer.in_proj.weight, 1 / 64),
    (mixer.out_proj.weight, 2 / 8 / 96),
    (mixer.gates, 1 / 24),
    (mixer.conv.weight, 0.01 / 4),
  ):
    w = np.asarray(weight[...])
    assert abs(w.var() / variance - 1) < 0.2
    assert np.abs(w).max() > 2.5 * w.std()  # not cut
  for bias in (mixer.in_proj.bias, mixer.conv.bias, mixer.gates_bias):
    assert not bias[...].any()


def test_rglru_slope_is_bounded():
  slope = jax.vmap(jax.grad(rglru.root))
  x = jnp.array([0.0, 1e-8, 0.25, 1.0])
  close(slope(x), [1e3, 1e3, 1.0, 0.5])
  close(rglru.root(x), np.sqrt(x))


def test_rglru_scales_all_but_first_tokens():
  """With a decay of 1 only a document's first token is written, in full."""
  mixer = make(rglru, dim=6, blocks=3)
  mixer.decay[...] = jnp.full(6, -30.0)
  mixer.conv.bias[...] = jnp.ones(6)
  x = jax.random.normal(jax.random.key(0), (2, 7, 6))
  reset = jnp.arange(7)[None] == jnp.array([[3], [5]])

  def state(*args):
    h = call(mixer, *args)[1]["h"]
    assert (h > 0.1).all()
    return h

  first = state(x[:, :1], None, None)
  close(state(x, None, None), first, 1e-4)
  fresh = mixer.init_state(2)
  close(state(x, None, fresh), first, 1e-4)
  carried = {**fresh, "h": first, "fresh": jnp.zeros(2, bool)}
  close(state(x, None, carried), first, 1e-4)
  restart = jnp.stack([x[0, 3:4], x[1, 5:6]])
  close(state(x, reset, carried), state(restart, None, None), 1e-4)


@pytest.mark.parametrize("start", sorted(s4d.STARTS))
def test_s4d_is_its_kernel(start):
  """Against the convolution of Listing 1, in complex float64."""
  B, T, D, N = 2, 23, 5, 6
  mixer = make(s4d, dim=D, state=N, start=start)
  x = jax.random.normal(jax.random.key(1), (B, T, D))
  y, *_ = call(mixer, x, None, None)

  p = jax.tree.map(np.float64, nnx.to_pure_dict(nnx.state(mixer)))
  A = -np.exp(p["log_A_real"]) + 1j * p["A_imag"]
  C = p["C"][0] + 1j * p["C"][1]
  dtA = np.exp(p["log_dt"])[:, None] * A
  powers = np.exp(dtA[..., None] * np.arange(T))
  K = 2 * np.einsum("dn,dnt->dt", C * np.expm1(dtA) / A, powers).real
  u = np.float64(x)
  s = [np.einsum("bsd,ds->bd", u[:, t::-1], K[:, : t + 1]) for t in range(T)]
  s = np.stack(s, 1) + p["D"] * u
  s *= (1 + np.vectorize(math.erf)(s / 2**0.5)) / 2
  a, b = np.split(
    s @ p["out_proj"]["weight"] + p["out_proj"]["bias"], 2, axis=-1
  )
  close(y, a / (1 + np.exp(-b)))


def test_s4d_starts():
  mixer = make(s4d, dim=512, state=4, start="lin")
  uniform(mixer.log_dt[...], np.log(1e-3), np.log(1e-1))
  close(jnp.exp(mixer.log_A_real[...]), np.full((512, 2), 0.5))
  close(mixer.A_imag[...], np.tile([0, np.pi], (512, 1)))
  assert abs(np.var(mixer.C[...]) - 0.5) < 0.1
  assert abs(np.var(mixer.D[...]) - 1) < 0.2
  close(s4d.inv(4), [4 / np.pi * 3, 4 / np.pi / 3])
  # the normal part of HiPPO-LegS, as it is written in the paper
  n = np.arange(8)
  root = np.sqrt(2 * n + 1)
  A = -np.tril(np.outer(root, root), -1) - np.diag(n + 1.0)
  normal = A + np.outer(root, root) / 2
  values = np.linalg.eigvals(normal)
  close(values.real, np.full(8, -0.5))
  close(s4d.legs(8), np.sort(values.imag)[4:])


@pytest.mark.parametrize(
  "module, fields, numbers",
  [
    (mamba2, dict(dim=24, head=32), ("32", "48")),
    (mamba2, dict(dim=24, head=8, groups=4), ("4", "6")),
    (mamba2, dict(dim=32, state=0), ("state=0", "positive")),
    (mamba, dict(dim=24, conv=0), ("conv=0", "positive")),
    (mamba, dict(dim=24, rank=0), ("rank=0", "positive")),
    (rglru, dict(dim=24, blocks=5), ("5", "24")),
    (rglru, dict(dim=24, width=30, blocks=4), ("4", "30")),
    (gated_deltanet, dict(dim=24, heads=0), ("heads=0", "positive")),
    (s4d, dict(dim=24, state=5), ("state=5", "even")),
    (s4d, dict(dim=24, start="legz"), ("legz", "legs")),
    (s5, dict(dim=24, state=20, blocks=3), ("20", "3")),
    (lru, dict(dim=24, state=0), ("state=0", "positive")),
    (lru, dict(dim=24, r_min=0.9, r_max=0.5), ("0.9", "0.5")),
    (lru, dict(dim=24, max_phase=7), ("7", "2 pi")),
    (minlstm, dict(dim=24, expand=0.5), ("minlstm", "0.5")),
    (hgrn, dict(dim=24, expand=0), ("expand=0", "positive")),
    (slstm, dict(dim=24, heads=5), ("5", "24")),
    (slstm, dict(dim=24, heads=24), ("24", "2")),
    (slstm, dict(dim=24, recurrent="ones"), ("ones", "zeros")),
    (shortconv, dict(dim=24, conv=0), ("conv=0", "positive")),
    (hyena, dict(dim=24, features=4), ("features=4", "3")),
    (hyena, dict(dim=24, filter=0), ("filter=0", "positive")),
  ],
)
def test_refuses(module, fields, numbers):
  with pytest.raises(ValueError) as error:
    module.Config(**SHELL, **fields)
  for number in numbers:
    assert number in str(error.value)


def test_gated_deltanet_sizes_itself():
  """About 6 dim^2 parameters, as its authors count them."""
  mixer = make(gated_deltanet, dim=256)
  sizes = [p.size for p in jax.tree.leaves(nnx.state(mixer))]
  assert abs(sum(sizes) / (6 * 256**2) - 1) < 0.02


@pytest.mark.parametrize("expand", [1, 1.5])
def test_mingru_is_its_log_space_form(expand):
  """Algorithm of appendix B.2.1: a cumulative log-sum-exp, in float64."""
  mixer = make(mingru, dim=6, expand=expand)
  x = jax.random.normal(jax.random.key(0), (2, 8, 6))
  z, v = (
    np.float64(x) @ np.float64(p.weight[...])
    for p in (mixer.z_proj, mixer.v_proj)
  )
  log_z, log_keep = -np.logaddexp(0, -z), -np.logaddexp(0, z)
  positive = np.log(np.maximum(v, 0) + 0.5)
  log_v = np.where(v >= 0, positive, -np.logaddexp(0, -v))
  decay = np.cumsum(log_keep, 1)
  h = np.exp(decay + np.logaddexp.accumulate(log_z + log_v - decay, 1))
  if expand != 1:
    h = h @ np.float64(mixer.out_proj.weight[...])
  y, state, _ = call(mixer, x, None, None)
  close(y, h)
  if expand == 1:
    close(state["h"], h[:, -1])
