"""What chooses experts and rows, beside the plain form of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import close

from arch import experts, product_keys, registry

D, E, K = 6, 5, 2
ROUTERS = ["expert_choice", "experts", "relu_router"]


def make(name, **fields):
  module = registry.find("channels", name)
  if name in ROUTERS:
    fields = dict(experts=E, top=K, width=7) | fields
  cfg = module.Config(dim=D, depth=3, length=8, **fields)
  return module.Channel(cfg, layer=jnp.int32(0), rngs=nnx.Rngs(0))


def inputs(B=3, T=11):
  return jax.random.normal(jax.random.key(1), (B, T, D))


def aux(channel, x):
  return jax.jit(lambda c, x: c(x, None, None)[2])(channel, x)


def test_statistics_by_hand():
  even = experts.statistics(jnp.full(4, 0.5))
  close(list(even.values()), [0.0, 1.0, 0.0], 1e-6)
  one = experts.statistics(jnp.array([0.0, 2.0, 0.0, 0.0]))
  close(list(one.values()), [3.0, 0.0, 0.75], 1e-6)
  assert [*one] == ["load_violation", "load_entropy", "dead_experts"]


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_losses_of_experts(score):
  fields = dict(score=score, balance_loss=0.3, z_loss=0.2)
  channel, x = make("experts", **fields), inputs()

  @jax.jit
  @jax.grad
  def moved(channel):
    return channel(x, None, None)[2].loss

  found = aux(channel, x)
  logits = (x @ channel.router[...]).reshape(-1, E)
  s = jax.nn.softmax(logits) if score == "softmax" else jax.nn.sigmoid(logits)
  p = jnp.mean(s / jnp.sum(s, -1, keepdims=True), 0)
  chosen = jnp.sum(jax.nn.one_hot(jax.lax.top_k(s, K)[1], E), 1)
  f = jnp.mean(chosen, 0) / K
  z = jnp.mean(jax.nn.logsumexp(logits, -1) ** 2)
  close(found.loss, 0.3 * E * jnp.sum(f * p) + 0.2 * z, 1e-5)
  close(found.statistics["balance_loss"], E * jnp.sum(f * p), 1e-5)
  # every part of the router learns from them alone
  assert np.all(np.any(np.asarray(moved(channel).router[...]), 0))


def test_the_balance_loss_is_transformers_over_k():
  torch = pytest.importorskip("torch")
  from transformers.models.mixtral.modeling_mixtral import (
    load_balancing_loss_func,
  )

  channel = make("experts", score="softmax", balance_loss=1.0)
  x = inputs()
  logits = torch.tensor(np.asarray((x @ channel.router[...]).reshape(-1, E)))
  theirs = load_balancing_loss_func((logits,), E, K)
  close(aux(channel, x).loss, theirs.item() / K, 1e-5)


def test_relu_router_follows_its_law():
  """The loss and the strength after a step, and as many experts in the end."""
  channel = make("relu_router", most=E, strength=0.3, rate=1.5)
  x = inputs()
  found = aux(channel, x)
  g = jax.nn.relu(x @ channel.router[...]).reshape(-1, E)
  above = jnp.mean(g > 0, 0)
  close(found.loss, 0.3 / 3 * jnp.mean(g @ (E / K * above)), 1e-5)
  assert jnp.mean(above) > K / E
  close(found.next["strength"], 0.3 * 1.5, 1e-6)
  close(found.statistics["experts_run"], E * jnp.mean(above), 1e-6)

  @jax.jit
  def step(channel):
    def loss(channel):
      found = channel(x, None, None)[2]
      return found.loss, found

    gradient, found = jax.grad(loss, has_aux=True)(channel)
    channel.router[...] -= 0.1 * gradient.router[...]
    channel.strength[...] = found.next["strength"]
    return channel, found.statistics["experts_run"]

  ran = []
  for _ in range(150):
    channel, run = step(channel)
    ran.append(float(run))
  assert np.mean(ran[:9]) > 2.3 and abs(np.mean(ran[-40:]) - K) < 0.3


def test_thresholds_take_their_share():
  channel = make("expert_choice", rate=0.2, most=E)
  skew = jnp.zeros((D, E)).at[0].set(jnp.linspace(-2.0, 2.0, E))
  channel.router[...] += skew
  x = inputs(4, 64).at[..., 0].set(1.0)
  first = aux(channel, x)
  s = np.asarray(jax.nn.sigmoid(x @ channel.router[...])).reshape(-1, E)
  load = np.mean(s > np.asarray(channel.threshold[...]), 0)
  close(first.statistics["experts_run"], load.sum(), 1e-5)
  want = np.quantile(s, 1 - K / E, axis=0, method="inverted_cdf")
  old = channel.threshold[...]
  close(first.next["threshold"], old + 0.2 * (want - old), 1e-5)
  for _ in range(40):
    channel.threshold[...] = aux(channel, x).next["threshold"]
  last = aux(channel, x).statistics
  assert first.statistics["load_violation"] > 0.5
  assert last["load_violation"] < 0.05
  assert abs(last["experts_run"] - K) < 0.05


@pytest.mark.parametrize("name", ["expert_choice", "relu_router"])
def test_a_token_runs_the_best_that_it_has_slots_for(name):
  x = inputs(1, 7)[0]
  all_, few = (make(name, most=n).route(x) for n in (E, K))
  assert few[0].shape == (7, K)
  close(few[1], all_[1][:, :K], 1e-6)
  assert np.array_equal(few[0], all_[0][:, :K])


@pytest.mark.parametrize(("n", "k"), [(7, 3), (3, 8), (1, 1)])
def test_rows_are_the_largest_of_all_sums(n, k):
  scores = jax.random.normal(jax.random.key(0), (4, 5, 2, n))
  top, row = product_keys.largest(scores, k)
  every = scores[..., 0, :, None] + scores[..., 1, None, :]
  exact, at = jax.lax.top_k(every.reshape(4, 5, n * n), k)
  close(top, exact, 1e-6)
  assert np.array_equal(row, at)


@pytest.mark.parametrize("name", ["memory", "peer"])
def test_idle_is_what_no_head_can_ask_for(name):
  channel = make(name, keys=6, heads=2, top=3)
  tables = [channel.v] + ([channel.u] if name == "peer" else [])
  assert channel.idle() == sum(t.size // 36 * (36 - 6) for t in tables)
  assert make(name, keys=2, heads=2, top=3).idle() == 0


@pytest.mark.parametrize(
  ("name", "fields", "message"),
  [
    ("relu_router", {"most": 1}, "relu_router: most=1 must be at least 2"),
    ("relu_router", {"most": 6}, "most=6 of experts=5"),
    ("relu_router", {"rate": 0.9}, "rate=0.9 must be at least 1"),
    ("relu_router", {"strength": 0.0}, "strength=0.0 must be positive"),
    ("expert_choice", {"rate": 0.0}, r"rate=0.0 must be in \(0, 1\]"),
    ("expert_choice", {"top": 6}, "channel expert_choice: top=6 of experts=5"),
    ("experts", {"z_loss": -1.0}, "z_loss=-1.0 must be at least 0"),
    ("peer", {"keys": 2, "top": 5}, r"channel peer: top=5 of keys=2\^2 rows"),
    ("memory", {"heads": 0}, "channel memory: heads=0 must be positive"),
  ],
)
def test_what_does_not_fit_is_refused(name, fields, message):
  with pytest.raises(ValueError, match=message):
    make(name, **fields)
