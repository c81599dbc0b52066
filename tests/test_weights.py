"""How weights are stored: what each type starts from, answers and learns."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import CHANNELS, MIXERS, build, close, config, held

import arch
from arch import arrays, layers, registry, starts
from arch.count import called
from arch.roles import Matrix
from train.sizes import parameters

TYPES = registry.names("weights")
STORED = [name for name in TYPES if name != "dense"]
D_IN, PARTS = 24, (48, 16, 3)


def kind(name, **fields):
  return registry.find("weights", name).Weight(**fields)


def linear(name, parts=PARTS, *, dtype="float32", init=None, d_in=D_IN, **kw):
  return layers.Linear(
    d_in,
    parts,
    dtype=dtype,
    rngs=nnx.Rngs(0),
    init=init,
    kind=kind(name, **kw),
  )


def inputs(d_in=D_IN, dtype=jnp.float32):
  return jax.random.normal(jax.random.key(1), (2, 5, d_in)).astype(dtype)


@pytest.mark.parametrize("name", TYPES)
def test_a_map_is_its_matrix(name):
  """Whatever it is stored as, and each part by itself; but for rounding."""
  x, kw = inputs(), {"activations": 0} if name == "ternary" else {}
  made = linear(name, **kw)
  parts = made(x)
  assert [y.shape for y in parts] == [(2, 5, n) for n in PARTS]
  W = made.matrix()
  assert (W.shape, W.dtype) == ((D_IN, sum(PARTS)), jnp.float32)
  close(jnp.concatenate(parts, -1), x @ W, 1e-5)
  low = linear(name, dtype="bfloat16", **kw)
  with jax.numpy_dtype_promotion("strict"):
    ys = low(inputs(dtype=jnp.bfloat16))
  assert all(y.dtype == jnp.bfloat16 for y in ys)
  close(ys, parts, 0.03)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0])
def test_answers_start_as_large_as_those_of_the_dense_map(name, scale):
  """Of each part by itself, and everything that learns gets a gradient."""
  parts = (128, 64, 8)
  init = starts.columns(*((starts.fan_in(scale * n), n) for n in parts))
  x = jax.random.normal(jax.random.key(1), (512, 128))

  def loss(made):
    ys = made(x)
    return sum(jnp.sum((y - 1.0) ** 2) for y in ys), ys

  @jax.jit
  def both():
    made, plain = (
      linear(n, parts, d_in=128, init=init) for n in (name, "dense")
    )
    moved, ys = jax.grad(loss, has_aux=True)(made)
    return ys, plain(x), jax.tree.leaves(nnx.state(moved, Matrix))

  ys, exact, moved = jax.device_get(both())
  for y, plain in zip(ys, exact, strict=True):
    size = np.sqrt(np.mean(plain * plain))
    assert abs(np.sqrt(np.mean(y * y)) - size) <= 0.1 * size
  size = [np.max(np.abs(g)) for g in moved]
  assert all(np.isfinite(size))
  # of a product with zeros the other factor waits for the first step
  assert sum(s > 0 for s in size) >= (len(size) if scale else 1)


@pytest.mark.parametrize("name", STORED)
def test_fewer_numbers_or_bits_and_as_a_stack(name):
  """E maps are E maps alone, and the whole is smaller than dense."""
  kw = dict(rngs=nnx.Rngs(0), init=starts.fan_in(), kind=kind(name))
  stack = layers.Linears(3, D_IN, 16, **kw)
  W = stack.matrix()
  assert W.shape == (3, D_IN, 16)
  for e in range(3):
    alone = linear(name, 16)
    for leaf in alone.leaves:
      getattr(alone, leaf)[...] = getattr(stack, leaf)[...][e]
    close(alone.matrix(), W[e], 1e-6)
  learnt = sum(p.size for p in jax.tree.leaves(nnx.state(stack, Matrix)))
  if name == "ternary":
    assert all(len(np.unique(np.round(w, 6))) == 3 for w in np.asarray(W))
  else:
    assert learnt <= 3 * D_IN * 16 / 2


def model(name, mixer="mingru", channel="swiglu", **fields):
  c = config(mixer)
  c.model.linear, c.model.weights = name, {name: fields}
  entry = c.model.pattern[0]
  entry = {"mixer": entry} if isinstance(entry, str) else dict(entry)
  c.model.pattern, c.model.depth = [entry | {"channel": channel}], 1
  return c.model


def test_every_mixer_and_channel_takes_factors():
  """By shapes, by turns; that none has a `weight`."""
  pairs = [(mixer, "none") for mixer in MIXERS]
  pairs += [("mingru", channel) for channel in CHANNELS]
  turns = itertools.cycle(["lowrank", "monarch"])
  for (mixer, channel), name in zip(pairs, turns, strict=False):
    cfg = model(name, mixer, channel)
    made = arch.abstract(cfg)

    x = jax.ShapeDtypeStruct((2, 5, cfg.dim), jnp.float32)
    with jax.numpy_dtype_promotion("strict"):
      y = jax.eval_shape(lambda made, x: made.mix(x)[0], made, x)
    assert y.shape == x.shape, (mixer, channel)


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize(
  "parts", [("attention", "none"), ("mingru", "swiglu")], ids="+".join
)
def test_parameters_are_fewer(name, parts):
  before, after = (
    parameters(SimpleNamespace(model=model(n, *parts))) for n in ("dense", name)
  )
  assert before == after if name == "ternary" else after < 0.8 * before


@pytest.mark.parametrize("name", STORED)
def test_one_token_after_another_is_one_call(name):
  """Of latent attention, which folds a map into another when it decodes."""
  made = build(SimpleNamespace(model=model(name, "mla")))
  tokens = jax.random.randint(jax.random.key(0), (2, 5), 0, 17)
  whole, _ = jax.jit(lambda t: made(t))(tokens)
  state, found = made.init_state(2), []
  step = jax.jit(lambda t, s: made(t, None, s))
  for t in range(5):
    y, state = step(tokens[:, t : t + 1], state)
    found.append(y)
  close(jnp.concatenate(found, 1), whole, 1e-4)


@pytest.mark.parametrize("name", TYPES)
def test_gates_stay_dense(name):
  """What is a map to a gate, and no Matrix, is stored whole."""
  found = arrays.roles(arch.abstract(model(name, "rwkv7", "rwkv")))
  gates = found["trunk"]["stack_0"]["block_0"]["rwkv7"]["decay"]
  assert gates["down"] == {"weight": "Gate"}


def test_dense_is_torchs(record_property):
  torch = pytest.importorskip("torch")
  made, x = linear("dense", 16), inputs()
  W = torch.tensor(np.asarray(made.weight[...]).T)
  theirs = torch.nn.functional.linear(torch.tensor(np.asarray(x)), W).numpy()
  source = "torch linear"
  held(record_property, "weights", "dense", source, made(x), theirs)


def test_ternary_is_bitnets(record_property):
  """Values and gradients of transformers' own."""
  torch = pytest.importorskip("torch")
  bitnet = pytest.importorskip("transformers.integrations.bitnet")

  made = linear("ternary", 16)
  x = inputs()
  weight = torch.tensor(np.asarray(made.weight[...]).T, requires_grad=True)
  theirs = torch.tensor(np.asarray(x), requires_grad=True)
  y = bitnet.ActQuant.apply(theirs) @ bitnet.WeightQuant.apply(weight).T
  torch.sum(torch.sin(y)).backward()

  def total(made, x):
    return jnp.sum(jnp.sin(made(x)))

  d_made, d_x = jax.grad(total, (0, 1))(made, x)
  ours = made(x), d_made.weight[...], d_x
  theirs = y.detach().numpy(), weight.grad.numpy().T, theirs.grad.numpy()
  source = "transformers bitnet WeightQuant and ActQuant"
  held(record_property, "weights", "ternary", source, ours, theirs)


def test_a_small_part_is_not_rounded_to_nothing():
  init = starts.columns((starts.fan_in(), 48), (starts.fan_in(0.02), 16))
  W = linear("ternary", (48, 16), init=init).matrix()
  large, small = np.split(np.asarray(W), [48], 1)
  assert np.mean(small != 0) > 0.5
  assert np.abs(small).max() < 0.1 * np.abs(large).max()


def test_lowrank_is_the_best_of_its_rank(record_property):
  """But for its size, which is that of the whole."""
  made, plain = linear("lowrank", 16), linear("dense", 16).matrix()
  r = int(0.5 * 24 * 16 / 40)
  assert made.down.shape == (24, r) and made.up_0.shape == (r, 16)
  u, s, v = np.linalg.svd(np.asarray(plain), full_matrices=False)
  best = (u[:, :r] * s[:r]) @ v[:r]
  best *= np.linalg.norm(plain) / np.linalg.norm(best)
  source = "numpy's singular values"
  held(record_property, "weights", "lowrank", source, made.matrix(), best)
  assert linear("lowrank", 1).leaves == ("weight",)


@pytest.mark.parametrize(("d_in", "d_out"), [(24, 48), (48, 24), (37, 35)])
def test_monarch_is_its_formula(d_in, d_out, record_property):
  made = linear("monarch", d_out, d_in=d_in, blocks=4)
  R, L = np.asarray(made.right_0[...]), np.asarray(made.left_0[...])
  n, p, q = R.shape
  _, r, s = L.shape
  wide = [-(-d // 4) for d in (d_in, min(d_in, d_out), d_out)]
  assert n == 4 and [p, q, s] == wide
  x = np.asarray(inputs(d_in), np.float64)[0]
  x = np.pad(x, ((0, 0), (0, n * p - d_in)))
  y = np.zeros((5, n * s))
  for t in range(5):
    h = [x[t, k * p + np.arange(p)] @ R[k] for k in range(n)]
    h = np.concatenate(h)
    for i in range(s):
      for j in range(n):
        y[t, i * n + j] = h[j::n] @ L[j, :, i]
  source, fields = "2204.00595, eq. 1, in numpy", {"d_in": d_in, "d_out": d_out}
  ours = made(inputs(d_in))[0]
  held(
    record_property, "weights", "monarch", source, ours, y[:, :d_out], fields
  )
  assert np.all(np.asarray(made.matrix()) != 0)  # all see all
  assert linear("monarch", 3).leaves == ("weight_0",)


@pytest.mark.parametrize(
  ("name", "fields", "message"),
  [
    ("ternary", {"activations": 1}, "activations=1 must be 0.* or 2 to 16"),
    ("lowrank", {"share": 0.0}, "share=0.0 must be between 0 and 1"),
    ("lowrank", {"share": "a"}, "weight lowrank: share='a' is no number"),
    ("monarch", {"blocks": 1}, "blocks=1 must be 2 or more"),
    ("monarch", {"rank": 1}, "weight monarch has no field 'rank'"),
    ("binary", {}, "unknown weight 'binary'.*lowrank, monarch, ternary"),
  ],
)
def test_what_does_not_fit_is_refused(name, fields, message):
  with pytest.raises(ValueError, match=message):
    arch.abstract(model(name, **fields))


def test_decompositions_are_one_by_one():
  """Two batches of them at once stood still for ever on a CPU."""

  def start(key):
    kw = dict(init=starts.fan_in(), kind=kind("lowrank"))
    return nnx.state(layers.Linears(3, 8, 6, rngs=nnx.Rngs(key), **kw))

  keys = jax.random.split(jax.random.key(0), 2)
  found = [*decompositions(jax.make_jaxpr(jax.vmap(start))(keys).jaxpr)]
  assert found and set(found) == {(8, 6)}


def decompositions(jaxpr):
  """Shapes of what a jaxpr has the singular values of."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "svd":
      yield eqn.invars[0].aval.shape
    for inner in called(eqn):
      yield from decompositions(inner)
