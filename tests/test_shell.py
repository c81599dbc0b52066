"""The shell: patterns, stacks, sharing, parallel mixers, streams, dropout."""

import dataclasses
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from models import build, close, config, held, noisy, tokens, unrolled

import arch
from arch import arrays, layers, registry, roles
from arch.config import Config as Base
from arch.law import At, Aux
from arch.pattern import places, stacks


def small(**fields):
  c = config("attention")
  c.model.update(fields)
  return c


def block_names(pattern, depth):
  return ["|".join(place.mixers) for place in places(pattern, depth, "swiglu")]


def test_a_pattern_is_repeated_and_cut():
  griffin = ("rglru", "rglru", "attention")
  assert block_names(griffin, 5) == [*griffin, "rglru", "rglru"]


def test_the_longest_periodic_run_is_stacked():
  griffin = places(("rglru", "rglru", "attention"), 26, "swiglu")
  assert [(n, len(part)) for n, part in stacks(griffin)] == [(8, 3), (1, 2)]
  one = places(("mamba2",), 4, "none")
  assert [(n, len(part)) for n, part in stacks(one)] == [(4, 1)]
  odd = places(("s4d", "mamba2", "mamba2", "rglru"), 4, "none")
  assert [(n, len(part)) for n, part in stacks(odd)] == [
    (1, 1),
    (2, 1),
    (1, 1),
  ]


@pytest.mark.parametrize(
  ("pattern", "depth", "error"),
  [
    ((), 3, "empty pattern"),
    (("mamba2",) * 4, 3, "4 blocks in a depth of 3"),
    (("gated_deltnet",), 3, "did you mean 'gated_deltanet'"),
    (("attention+swigloo",), 3, "did you mean 'swiglu'"),
    (({"mixer": "attention", "windoww": 3},), 3, "has a field 'windoww'"),
    (({"window": 3},), 3, "needs a mixer"),
    (("mamba2", 3), 3, "an entry of a pattern is a name or .* not 3"),
    (("mamba", {"mixer": "mamba", "aside": True}), 2, "last block is aside"),
    (({"mixer": "attention", "own": {"channel": 2}},), 1, "needs .* a share"),
    (
      ({"mixer": "mamba", "share": "a", "own": {"mamba": 2}},),
      1,
      "mamba has no Own",
    ),
    (
      ({"mixer": "mamba", "share": "a", "own": {"attention": 2}},),
      1,
      "'attention' is none of mamba",
    ),
    (
      ({"mixer": "attention", "share": "a", "own": {"attention": 0}},),
      1,
      "ranks must be positive",
    ),
    (({"mixer": "attention|mamba", "embedding": True},), 1, "some do not"),
    (
      ({"mixer": "mamba", "wiring": "paralel"},),
      1,
      "unknown wiring 'paralel': did you mean 'parallel'.*residual",
    ),
    (
      ({"mixer": "attention|mamba", "wiring": "residual"},),
      1,
      "takes one mixer, not attention.mamba: wiring='parallel'",
    ),
    (
      ({"mixer": "rwkv7", "head": 6},),
      2,
      "block 0: rwkv7 reads 'first_value', which no block before it writes; "
      "known there: embedding",
    ),
  ],
)
def test_a_wrong_pattern_is_refused(pattern, depth, error):
  with pytest.raises(ValueError, match=error):
    arch.abstract(small(pattern=pattern, depth=depth).model)


@pytest.mark.parametrize(
  ("fields", "error"),
  [
    ({"dmi": 3}, "model has no field 'dmi': did you mean 'dim'"),
    ({"dim": 0}, "dim=0 must be positive"),
    ({"dtype": "float16"}, "one of float32, bfloat16, mixed"),
    ({"remat": "all"}, "one of none, auto, block"),
    ({"dim": 25}, "attention: head=6 must divide dim=25; .* are 24 and 30"),
    ({"dim": 4}, "head=6 must divide dim=4; the nearest dim is 6"),
    (
      {"dim": 25, "pattern": ("mamba2",), "mixers": {"mamba2": {"head": 6}}},
      "mamba2: head=6 must divide inner width E=50 at dim=25; the nearest "
      "E are 48 and 54",
    ),
    (
      {"pattern": ("rglru",), "mixers": {"rglru": {"blocks": 0}}},
      "rglru: blocks=0 must be positive",
    ),
  ],
)
def test_a_wrong_field_is_refused(fields, error):
  with pytest.raises(ValueError, match=error):
    arch.abstract({**small().model, **fields})


def test_an_unknown_vocabulary_names_all():
  c = small()
  c.model.vocab.name = "ful"
  with pytest.raises(ValueError, match="'full'.*Known: .*full, .*lowrank"):
    arch.abstract(c.model)


def features(model, text):
  return jax.jit(lambda model: model.features(text)[0])(model)  # traced anew


def test_unrolled_is_scanned(monkeypatch):
  c = small(pattern=("mingru", "attention"), depth=4)
  model, text = noisy(build(c)), tokens(c)

  def run(model):
    def loss(params):
      out = arrays.fill(model, params, buffers)(text)
      return jnp.sum(jnp.sin(out[0])), out

    params, buffers = arrays.pure(model)
    return jax.jit(jax.grad(loss, has_aux=True))(params)

  scanned = run(model)
  unrolled(monkeypatch, 8)
  close(run(model), scanned)


@pytest.mark.parametrize(
  "mixer", ["attention", "mamba2", "gated_deltanet", "mamba", "rglru"]
)
def test_remat_changes_nothing(mixer):
  c = config(mixer)
  model, text = noisy(build(c)), tokens(c)
  params, buffers = arrays.pure(model)

  def gradient(remat):
    c.model.remat = remat
    like = arch.abstract(c.model)

    def loss(params):
      return jnp.sum(jnp.sin(arrays.fill(like, params, buffers)(text)[0]))

    return jax.jit(jax.grad(loss))(params), str(jax.make_jaxpr(loss)(params))

  plain, without = gradient("none")
  for remat in ("auto", "block"):
    again, using = gradient(remat)
    close(again, plain)
    assert using.count("prevent_cse") > without.count("prevent_cse")


def test_shared_places_share_weights_and_keep_their_own_state():
  entry = {"mixer": "mamba2+swiglu", "share": "one"}
  c = config("mamba2")
  c.model.channels.swiglu = {"width": 7}
  alone = arch.abstract({**c.model, "pattern": ("mamba2+swiglu",), "depth": 1})
  c.model.pattern, c.model.depth = (entry,), 3
  model = noisy(build(c))
  assert arch.count(model, 8).params == arch.count(alone, 8).params
  text = tokens(c, 1)
  call = jax.jit(lambda *args: model(*args))
  whole, _ = call(text)
  state = model.init_state(1)
  steps = []
  for t in range(text.shape[1]):
    logits, state = call(text[:, t : t + 1], None, state)
    steps.append(logits)
  close(jnp.concatenate(steps, 1), whole)
  ssm = state["trunk"]["stack_0"]["block_0"]["mamba2"]["ssm"]
  assert ssm.shape[0] == 3 and not np.allclose(ssm[0], ssm[1])


def test_places_that_share_must_be_equal():
  a = {"mixer": "attention", "share": "one"}
  c = small(pattern=(a, {**a, "window": 3}), depth=2)
  with pytest.raises(ValueError, match="must be equal"):
    arch.abstract(c.model)


@pytest.mark.parametrize("unroll", [0, 8])
def test_an_aside_block_is_read_by_the_next_one_only(
  monkeypatch, unroll, record_property
):
  """Zamba2: shared weights beside a place's own maps, the embedded tokens."""
  unrolled(monkeypatch, unroll)
  shared = {
    "mixer": "attention",
    "channel": "swiglu",
    "share": "a",
    "own": {"attention": 2, "channel": 3},
    "aside": True,
    "embedding": True,
  }
  c = small(pattern=("mingru", shared) * 2 + ("mingru",), depth=5)
  c.model.channel = "none"
  model, text = noisy(build(c)), tokens(c)
  assert model.trunk.repeats == (1, 2)

  @jax.jit
  def slow(model):
    def own(i, name):
      return jax.tree.map(lambda a: a[i], getattr(model.trunk.stack_1, name))

    x = e = model.vocab.embed(text)[0]
    first = model.trunk.stack_0.block_0
    first = jax.tree.map(lambda a: a[0], first)
    x = x + first.mingru(first.norm(x), None, None)[0]
    block = model.trunk.shared_a
    params, _ = arrays.pure(block)
    for i in range(2):
      low = own(i, "own_0")
      attention = arrays.fill(block, params, {}).attention
      downs = jnp.split(low.attention.down.weight[...], 3, 1)
      ups = [getattr(low.attention, n).weight[...] for n in "qkv"]
      attention.qkv.weight[...] += jnp.concatenate(
        [a @ b for a, b in zip(downs, ups, strict=True)], 1
      )
      u = block.norm(jnp.concatenate([x, e], -1))
      y, *_ = attention(u, None, None)
      swiglu = arrays.fill(block, params, {}).channel
      maps = swiglu.gate, swiglu.up
      wide = jnp.concatenate([m.weight[...] for m in maps], 1)
      wide += low.channel.down.weight[...] @ low.channel.up.weight[...]
      for m, half in zip(maps, jnp.split(wide, 2, 1), strict=True):
        m.weight[...] = half
      a = swiglu(block.channel_norm(y), None, None)[0] @ low.out.weight[...]
      last = own(i, "block_1")
      x = x + last.mingru(last.norm(x + a), None, None)[0]
    return model.norm(x)

  source, ours = "Zamba2 (2411.15242), spelled out", features(model, text)
  fields = {"unroll": unroll}
  held(record_property, "wiring", "aside", source, ours, slow(model), fields)


def test_parallel_mixers_are_normalised_and_averaged(record_property):
  c = config("mamba2_attention")
  c.model.pattern, c.model.depth = ("mamba2|attention",), 1
  model = noisy(build(c))
  block = jax.tree.map(lambda a: a[0], model.trunk.stack_0).block_0
  x = jax.random.normal(jax.random.key(0), (2, 5, c.model.dim))

  @jax.jit
  def slow(block):
    u = block.norm(x)
    both = [
      block.mamba2_norm(block.mamba2(u, None, None)[0]),
      block.attention_norm(block.attention(u, None, None)[0]),
    ]
    return x + sum(both) / 2

  found = jax.jit(lambda block: block(x, None, At())[0])(block)
  source = "Hymba (2411.13676), eq. 3, spelled out"
  held(record_property, "wiring", "parallel", source, found, slow(block))


@pytest.mark.parametrize("norm", sorted(layers.NORMS))
def test_norms_are_their_formulas(norm):
  made = layers.NORMS[norm](6, eps=1e-3)
  x = np.random.default_rng(0).normal(1, 2, (2, 3, 6))
  w = np.linspace(-1, 2, 6)
  if norm != "rms_plain":
    made.weight = roles.Vector(jnp.asarray(w, jnp.float32))
  if norm == "layer":
    made.bias = roles.Vector(jnp.asarray(w[::-1].copy(), jnp.float32))
    x0 = x - x.mean(-1, keepdims=True)
    y = w * x0 / np.sqrt(x.var(-1, keepdims=True) + 1e-3) + w[::-1]
  else:
    y = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3)
    y *= {"rms": w, "rms_plus": w + 1, "rms_plain": 1}[norm]
  close(made(jnp.asarray(x, jnp.float32)), y)
  assert made(jnp.ones((1, 6), jnp.bfloat16)).dtype == jnp.bfloat16


def test_the_shell_of_gpt2():
  """Positions count from a document's start; norms have biases."""
  c = small(positions=13, embed_norm=True, norm="layer", norm_eps=1e-5)
  model, text = noisy(build(c)), tokens(c)
  sizes = arch.count(model, 13)
  plain = arch.count(arch.abstract(small().model), 13)
  D, norms = c.model.dim, 2 * c.model.depth + 2
  assert sizes.groups["vocab"] - plain.groups["vocab"] == 13 * D
  assert sizes.groups["norm"] - plain.groups["norm"] == (norms + 1) * D
  assert sizes.decoding.state["vocab"] == 4

  call = jax.jit(lambda *args: model(*args))
  reset = jnp.zeros(text.shape, bool).at[0, 5].set(True)
  whole, last = call(text, reset)
  state, steps = model.init_state(2), []
  for t in range(text.shape[1]):
    now = slice(t, t + 1)
    logits, state = call(text[:, now], reset[:, now], state)
    steps.append(logits)
  close(jnp.concatenate(steps, 1), whole)
  close(state, last)
  assert state["vocab"]["position"].tolist() == [8, 13]
  tail, _ = call(text[:1, 5:])
  close(whole[0, 5:], tail[0])

  over, _ = call(text[:, :1], None, state)
  assert jnp.all(jnp.isfinite(over[0])) and not jnp.any(jnp.isfinite(over[1]))
  with pytest.raises(ValueError, match="14 tokens at once.* 13 learned"):
    model(jnp.zeros((1, 14), jnp.int32))


def test_positions_tell_tokens_apart():
  c = small(positions=13)
  model = noisy(build(c))
  x = features(model, jnp.ones((1, 13), jnp.int32))
  assert jnp.linalg.norm(x[0, 0] - x[0, 1]) > 0.1


def test_dropout_is_of_the_key_and_only_in_training():
  c = small(dropout=0.4)
  model, text = noisy(build(c)), tokens(c)

  @jax.jit
  def out(key):
    return model.features(text, key=key)[0]

  one, again, other = (out(jax.random.key(k)) for k in (1, 1, 2))
  np.testing.assert_array_equal(one, again)
  assert not np.allclose(one, other)
  c.model.dropout = 0.0
  without = arrays.fill(arch.abstract(c.model), *arrays.pure(model))
  close(out(None), features(without, text), 1e-6)


def test_a_stream_crosses_layers(monkeypatch):
  """A mixer that sums what `stream` holds, and adds its input to it."""

  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Config(Base):
    reads, writes = ("embedding", "sum"), ("sum",)

  class Mixer(nnx.Module):
    def __init__(self, cfg, *, layer, rngs):
      self.cfg = cfg
      self.weight = roles.Vector(jnp.ones(cfg.dim))

    def init_state(self, batch, length=None):
      return {}

    def __call__(self, x, reset, state, *, embedding, sum):
      y = self.weight[...][None, None] * sum
      return y, {}, Aux(stream={"sum": sum + embedding})

  toy = types.ModuleType("arch.mixers.toy")
  toy.Config, toy.Mixer = Config, Mixer
  monkeypatch.setitem(sys.modules, "arch.mixers.toy", toy)
  known = registry.names
  monkeypatch.setattr(registry, "names", lambda axis: [*known(axis), "toy"])
  c = small(pattern=("toy",), channel="none", depth=3)
  model, text = build(c), tokens(c)
  x = model.vocab.embed(text)[0]
  # 0 + 1 + 2 embeddings are added by the three layers
  close(features(model, text), model.norm(4 * x))


def test_places_that_cannot_share_are_refused():
  c = small(pattern=("hgrn", {"mixer": "hgrn", "expand": 2}), depth=2)
  with pytest.raises(ValueError, match="places of hgrn differ in a field"):
    build(c)


@pytest.mark.parametrize("unroll", [0, 8])
def test_a_mixer_shares_once_a_model(monkeypatch, unroll):
  """Each layer is handed its own row of one table."""

  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Config(Base):
    scale: float = 1.0

    reads = ("row",)

  class Shared(nnx.Module):
    def __init__(self, cfg, *, rngs):
      rows = jax.random.normal(rngs.params(), (cfg.depth, cfg.dim))
      self.rows = roles.Gate(rows)

    def __call__(self, layer):
      return self.rows[...][layer]

  class Mixer(nnx.Module):
    def __init__(self, cfg, *, layer, rngs):
      self.cfg = cfg
      self.weight = roles.Vector(cfg.scale * (layer + jnp.ones(cfg.dim)))

    def init_state(self, batch, length=None):
      return {}

    def __call__(self, x, reset, state, row):
      y = (self.weight[...] * row)[None, None]
      return jnp.broadcast_to(y, x.shape), {}, Aux()

  toy = types.ModuleType("arch.mixers.toy")
  toy.Config, toy.Mixer, toy.Shared = Config, Mixer, Shared
  monkeypatch.setitem(sys.modules, "arch.mixers.toy", toy)
  unrolled(monkeypatch, unroll)
  known = registry.names
  monkeypatch.setattr(registry, "names", lambda axis: [*known(axis), "toy"])
  pattern = ("toy", {"mixer": "toy", "scale": 2.0})
  c = small(pattern=pattern, channel="none", depth=5)
  model, text = build(c), tokens(c)
  assert arch.count(model, 8).groups["mixer"] == 2 * 5 * c.model.dim
  rows = model.trunk.once.toy.rows[...]
  assert rows.shape == (5, c.model.dim)
  x = model.vocab.embed(text)[0]
  added = jnp.array([1.0, 4.0, 3.0, 8.0, 5.0]) @ rows
  close(features(model, text), model.norm(x + added[None, None]))


def test_roles_by_type():
  c = config("mamba2")
  roles = arrays.roles(arch.abstract(c.model))["trunk"]["stack_0"]["block_0"]
  mixer = roles["mamba2"]
  assert mixer["in_proj"]["weight"] == "Matrix"
  assert mixer["conv"]["weight"] == "Vector"
  assert {mixer[k] for k in ("A_log", "D", "dt_bias")} == {"Gate"}
  assert roles["norm"]["weight"] == "Vector"


def test_a_parameter_without_a_role_is_refused():
  model = arch.abstract(config("mamba2").model)
  model.norm.weight = nnx.Param(jnp.zeros(3))
  with pytest.raises(ValueError, match="norm.weight is a Param.*Matrix, Embed"):
    arrays.roles(model)


def test_visits_of_shared_places():
  """Where each layer's arrays lie, and which pass over them it is."""
  shared = {"mixer": "mamba", "share": "a"}
  c = small(pattern=(shared, "mamba", shared, "mamba"), depth=4)
  model = build(c)
  assert model.trunk.shares == ("a",)
  visits = list(model.trunk.visits)
  assert [visit.place.visit for visit in visits] == [0, 0, 1, 0]
  assert [visit.block for visit in visits] == [
    ("shared_a",),
    ("stack_0", "block_1"),
  ] * 2
  params, _ = arrays.pure(model)
  paths = flatten_dict(params["trunk"])
  assert {path[: len(v.block)] for path in paths for v in visits} >= {
    visit.block for visit in visits
  }
  stacked = arrays.layers(model)
  assert {path[:2] for path in stacked} == {("trunk", "stack_0")}
  assert set(stacked.values()) == {1}
