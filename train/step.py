"""The one training step. It knows no architecture, vocabulary or task.

The state is a nested dict of arrays: params, buffers, opt, step, seed, lr,
alive. Every leaf may carry a leading axis R of replicates, seeds and learning
rates that one compiled program trains at once. A batch is a dict of tokens,
targets, weights, reset, each B T, or R B T where replicates see different
data.

R replicates  B batch  T time  M microbatches
"""

import jax
import jax.numpy as jnp
import optax

from arch import arrays, lm, target
from train import optimizer
from train.sharding import apart


class Compiled:
  """jax.jit of a function of a state and a batch, wherever those are, traced
  for the target that it was made under."""

  def __init__(self, function, **options):
    self._jit = jax.jit(function, **options)
    self._cache_size = self._jit._cache_size
    self._target = target.now().name

  def __call__(self, state, batch):
    with target.using(self._target), apart(batch):
      return self._jit(state, batch)

  def lower(self, state, batch):
    with target.using(self._target), apart(batch):
      return self._jit.lower(state, batch)


class Step:
  """Builds the state of a config's model and steps it.

  Attributes:
    init: (seed, lr) -> state; arrays of R seeds and rates -> R replicates.
    train: (state, batch) -> (state, metrics), compiled, donates its state.
    layers: which arrays stack layers, as Sharding wants to know.
  """

  def __init__(self, cfg):
    self.cfg = cfg
    self.model = lm.abstract(cfg.model)
    self.layers = arrays.layers(self.model)
    self.optimizer = optimizer.make(cfg.train, arrays.roles(self.model))
    self.share = optimizer.schedule(cfg.train)
    self.train = Compiled(self._train, donate_argnums=0)
    self._inits = jax.jit(self._init), jax.jit(jax.vmap(self._init))

  def init(self, seed, lr):
    """A fresh state for a seed and a peak learning rate."""
    seed, lr = jnp.asarray(seed, jnp.uint32), jnp.asarray(lr, jnp.float32)
    return self._inits[seed.ndim](seed, lr)

  def _init(self, seed, lr):
    model = lm.build(self.cfg.model, rngs=arrays.rngs(seed))
    params, buffers = arrays.pure(model)
    return {
      "params": params,
      "buffers": buffers,
      "opt": self.optimizer.init(params),
      "step": jnp.int32(0),
      "seed": seed,
      "lr": lr,
      "alive": jnp.bool_(True),
    }

  def _train(self, state, batch):
    if state["step"].ndim == 0:
      return self._one(state, batch)
    own = batch["tokens"].ndim == 3
    return jax.vmap(self._one, in_axes=(0, 0 if own else None))(state, batch)

  def _one(self, state, batch):
    key = None
    if self.cfg.model.dropout:
      key = jax.random.fold_in(jax.random.key(state["seed"]), state["step"])
    (loss, aux), grads = self._gradients(state, batch, key)

    norm = optax.tree.norm(grads)
    scale = 1.0
    if self.cfg.train.clip:
      scale = jnp.minimum(1.0, self.cfg.train.clip / jnp.maximum(norm, 1e-12))
    grads = jax.tree.map(lambda g: g * scale, grads)
    updates, opt = self.optimizer.update(grads, state["opt"], state["params"])
    rate = state["lr"] * self.share(state["step"])
    params = jax.tree.map(lambda p, u: p + rate * u, state["params"], updates)

    alive = state["alive"] & jnp.isfinite(loss) & jnp.isfinite(norm)
    new = {
      **state,
      "params": params,
      "buffers": overwrite(state["buffers"], aux.next),
      "opt": opt,
      "step": state["step"] + 1,
    }
    new = jax.tree.map(lambda a, b: jnp.where(alive, a, b), new, state)
    new["alive"] = alive
    metrics = {"loss": loss, "grad_norm": norm, "alive": alive}
    return new, metrics | aux.statistics

  def _gradients(self, state, batch, key):
    """Loss and aux of the whole batch and their gradient, M parts at a time."""

    def objective(params, part, key):
      model = arrays.fill(self.model, params, state["buffers"])
      loss, aux = model.loss(**part, key=key)
      return loss + aux.loss, (loss, aux)

    gradient = jax.grad(objective, has_aux=True)
    parts = self.cfg.train.accumulate
    if parts == 1:
      grads, (loss, aux) = gradient(state["params"], batch, key)
      return (loss, aux), grads

    def split(x):
      # sequences m, M + m, 2 M + m ...: each device has its share of every m
      return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

    batch = jax.tree.map(split, batch)
    # a part weighs as many positions as it scores, so that M parts are the
    # whole; aux has no weight of its own and is averaged
    shares = jnp.sum(batch["weights"], (1, 2))
    shares /= jnp.maximum(jnp.sum(shares), 1e-12)

    def add(total, xs):
      part, share, i = xs
      k = None if key is None else jax.random.fold_in(key, i)
      grads, (loss, aux) = gradient(state["params"], part, k)
      grads, loss = jax.tree.map(lambda x: x * share, (grads, loss))
      aux = jax.tree.map(lambda x: x / parts, aux)
      return jax.tree.map(jnp.add, total, (grads, (loss, aux))), None

    first = jax.tree.map(lambda x: x[0], batch)
    zero = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype),
      jax.eval_shape(gradient, state["params"], first, key),
    )
    xs = (batch, shares, jnp.arange(parts))
    (grads, (loss, aux)), _ = jax.lax.scan(add, zero, xs)
    return (loss, aux), grads


def overwrite(old: dict, new: dict) -> dict:
  """`old` with the leaves that `new` names."""
  merged = dict(old)
  for key, value in new.items():
    inner = isinstance(value, dict)
    merged[key] = overwrite(old[key], value) if inner else value
  return merged
