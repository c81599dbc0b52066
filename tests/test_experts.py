"""Experts against a loop over them, and what balances their load."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import close

from arch import target
from arch.channels import experts, swiglu
from arch.count import flops

COMMON = dict(dim=6, depth=3, length=8)


def make(**fields):
  fields = dict(experts=5, top=2, width=7) | fields
  cfg = experts.Config(**COMMON, **fields)
  return experts.Channel(cfg, layer=jnp.int32(0), rngs=nnx.Rngs(0))


def inputs(B=3, T=11, dtype=jnp.float32):
  return jax.random.normal(jax.random.key(1), (B, T, 6), dtype)


def choose(channel, bias):
  channel.bias[...] = jnp.asarray(bias, jnp.float32)
  return channel


def call(channel, x):
  return channel(x, None, None)[0]


def naive(channel, x):
  """Every expert on every token, weighted by 0 where it is not chosen."""
  cfg = channel.cfg
  logits = x @ channel.router[...]
  scores = {"sigmoid": jax.nn.sigmoid, "softmax": jax.nn.softmax}[cfg.score]
  scores = scores(logits)
  order = jnp.argsort(-(scores + channel.bias[...][None, None]), -1)
  chosen = jax.nn.one_hot(order[..., : cfg.top], cfg.experts).sum(-2)
  weights = scores * chosen
  if cfg.experts == 1:
    weights = chosen
  elif cfg.top > 1 and cfg.normalised:
    weights = weights / weights.sum(-1, keepdims=True)
  weights = cfg.scale * weights
  y = channel.shared(x, None, None)[0] if cfg.shared_hidden else 0 * x
  if cfg.shared_gate:
    y = y * jax.nn.sigmoid(x @ channel.shared_gate[...])
  for e in range(cfg.experts):
    gate, up, down = (
      p.weight[...][e] for p in (channel.gate, channel.up, channel.down)
    )
    own = (jax.nn.silu(x @ gate) * (x @ up)) @ down
    y = y + weights[..., e, None] * own
  return y


def graded(f, channel, x):
  """Value, and gradients by the parameters and x of a nonlinear loss."""
  graph, params, buffers = nnx.split(channel, nnx.Param, ...)

  def loss(params, x):
    y = f(nnx.merge(graph, params, buffers), x)
    return jnp.sum(jnp.sin(3 * y.astype(jnp.float32))), y

  grads, y = jax.grad(loss, (0, 1), has_aux=True)(params, x)
  return y, grads


def same(channel, x):
  def both(*args):
    return graded(call, *args), graded(naive, *args)

  close(*jax.jit(both)(channel, x), 1e-5)


@pytest.mark.parametrize(
  "fields, platform",
  [
    (dict(), "cpu"),
    (dict(), "tpu"),
    (dict(top=1), "cpu"),
    (dict(top=5, shared=0, score="softmax"), "cpu"),
    (dict(experts=1, top=1, shared=4), "cpu"),
    (dict(normalised=False, scale=2.5, shared_gate=True), "cpu"),
  ],
  ids=str,
)
def test_equals_a_loop_over_experts(fields, platform):
  channel = make(**fields)
  choose(channel, jnp.linspace(-0.1, 0.1, channel.cfg.experts))
  with target.using(platform):
    same(channel, inputs())


@pytest.mark.parametrize("favourites", [[4], [1, 3]])
def test_the_worst_load_drops_nothing(favourites):
  channel = make(top=len(favourites))
  choose(channel, np.isin(np.arange(5), favourites) * 10)
  x = inputs(1, 37)
  choice, _ = jax.jit(channel.route)(x[0])
  assert set(np.unique(choice)) == set(favourites)
  same(channel, x)


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
def test_one_expert_is_the_dense_layer(score):
  own = dict(experts=1, top=1, shared=0, score=score)
  channel = make(**own)
  dense = swiglu.Channel(
    swiglu.Config(**COMMON, width=7), layer=jnp.int32(0), rngs=nnx.Rngs(1)
  )
  for name in ("gate", "up", "down"):
    own = getattr(channel, name).weight[...]
    getattr(dense, name).weight[...] = own[0]
  run = jax.jit(call)
  close(run(channel, inputs()), run(dense, inputs()), 1e-6)


def test_tokens_do_not_meet():
  channel, x = make(), inputs(1, 23)
  run = jax.jit(call)
  y = run(channel, x)
  order = np.random.default_rng(0).permutation(23)
  close(run(channel, x[:, order]), y[:, order], 1e-6)
  steps = [run(channel, x[:, t : t + 1]) for t in range(23)]
  close(jnp.concatenate(steps, 1), y, 1e-6)


def test_layers_and_replicates_by_vmap():
  def build(key):
    cfg = make().cfg
    return experts.Channel(cfg, layer=jnp.int32(0), rngs=nnx.Rngs(key))

  stack = nnx.vmap(build)(jax.random.split(jax.random.key(0), 2))
  x = jnp.stack([inputs(), -inputs()])
  run = functools.partial(graded, call)
  together = jax.jit(jax.vmap(run))(stack, x)
  alone = jax.jit(lambda *args: jax.lax.map(lambda a: run(*a), args))(stack, x)
  close(together, alone, 1e-5)
  assert stack.idle() == 2 * 3 * (5 - 2) * 6 * 7


def test_bfloat16_is_close_and_strict():
  exact = make()
  channel = experts.Channel(
    experts.Config(**COMMON, dtype="bfloat16", experts=5, top=2, width=7),
    layer=jnp.int32(0),
    rngs=nnx.Rngs(0),
  )
  x = inputs(dtype=jnp.bfloat16)
  with jax.numpy_dtype_promotion("strict"):
    y, (d_params, d_x) = jax.jit(functools.partial(graded, call))(channel, x)
  assert (y.dtype, d_x.dtype) == (jnp.bfloat16, jnp.bfloat16)
  assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(d_params))
  close(y, jax.jit(call)(exact, x.astype(jnp.float32)), 3e-2)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_gradients_add_up_in_float32(platform):
  channel = experts.Channel(
    experts.Config(
      **COMMON, dtype="bfloat16", experts=1, top=1, width=7, shared=0
    ),
    layer=jnp.int32(0),
    rngs=nnx.Rngs(0),
  )
  x = jnp.broadcast_to(inputs(1, 1, jnp.bfloat16), (1, 4096, 6))

  @jax.jit
  def grad(channel, x):
    return jax.grad(lambda c: jnp.sum(call(c, x).astype(jnp.float32)))(channel)

  with target.using(platform):
    whole, one = (grad(channel, x).down.weight[...] for x in (x, x[:, :1]))
  close(whole / 4096, one, 4e-3)  # bfloat16 rounds by half of that


def test_bias_changes_the_choice_and_not_the_weights():
  channel, x = make(), inputs()[0]
  before, weights = channel.route(x)
  scores = jax.nn.sigmoid(x @ channel.router[...])
  after, biased = choose(channel, [0, 0, 0, 0, 5]).route(x)
  assert np.all(np.any(after == 4, 1)) and not np.all(np.any(before == 4, 1))
  for choice, given in ((before, weights), (after, biased)):
    own = jnp.take_along_axis(scores, choice, 1)
    close(given, own / own.sum(1, keepdims=True), 1e-6)


def test_bias_moves_the_load_towards_balance():
  channel = make(experts=8, top=2, balance_rate=0.005)
  skew = jnp.zeros((6, 8)).at[0, :2].set(2.0)
  channel.router[...] = channel.router[...] + skew
  x = inputs(4, 64).at[..., 0].set(1.0)

  run = jax.jit(lambda channel, x: channel(x, None, None)[2])
  violations = []
  for _ in range(150):
    aux = run(channel, x)
    violations.append(float(aux.statistics["load_violation"]))
    channel.bias[...] = aux.next["bias"]
  assert violations[0] > 2
  assert np.mean(violations[-5:]) < 0.3


def test_next_bias_by_hand():
  channel = choose(make(top=1, balance_rate=0.5), [0, 0, 9, 0, 0])
  aux = jax.jit(lambda x: channel(x, None, None)[2])(inputs())
  close(aux.next["bias"], jnp.array([0.5, 0.5, 8.5, 0.5, 0.5]), 1e-6)
  close(aux.statistics["load_violation"], 4.0, 1e-6)


def test_one_token_costs_no_more_than_its_experts():
  D, E, K, W = 6, 64, 3, 7
  channel = make(experts=E, top=K, shared=0)
  ops = flops(call, channel, inputs(1, 1))
  assert ops["products", "norm"] == K * 6 * D * W + 2 * D * E
  jaxpr = jax.make_jaxpr(call)(channel, inputs(1, 1)).jaxpr
  made = [v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars]
  assert max(made) < E * D * W


def test_default_widths_make_the_active_width_of_swiglu():
  common = dict(dim=256, depth=1, length=8)
  dense = swiglu.Config(**common).W
  for top, shared in ((2, None), (4, None), (2, 0)):
    cfg = experts.Config(**common, top=top, shared=shared)
    active = top * cfg.W + cfg.shared_hidden
    assert abs(active / dense - 1) < 0.1


@pytest.mark.parametrize(
  "fields, message",
  [
    (dict(experts=0), "experts=0"),
    (dict(top=0), "top=0"),
    (dict(top=6), "top=6 of experts=5"),
    (dict(width=0), "width=0"),
    (dict(shared=-1), "shared=-1"),
    (dict(balance_rate=-0.1), "balance_rate=-0.1"),
    (dict(score="relu"), "score='relu'"),
  ],
)
def test_bad_fields(fields, message):
  with pytest.raises(ValueError, match=message):
    make(**fields)
