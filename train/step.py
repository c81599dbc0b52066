"""The one training step. It knows no architecture, vocabulary or task.

The state is a nested dict of arrays: params, buffers, opt, step, seed, lr,
alive, and ema, the averaged parameters, where train.ema is set. Every leaf may
carry a leading axis R of replicates, seeds and learning rates that one compiled
program trains at once. A batch is a dict of tokens, targets, weights, reset,
each B T, or R B T where replicates see different data.

R replicates  B batch  T time  M microbatches
"""

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from arch import arrays, lm, target
from train import models, optimizer, rounding
from train.sharding import apart


class Compiled:
  """jax.jit of a function of a state, a batch and what is given, wherever those
  are, traced for the target that it was made under."""

  def __init__(self, function, given=None, **options):
    self._jit = jax.jit(function, **options)
    self._cache_size = self._jit._cache_size
    self._target = target.now().name
    self._given = given, None

  def __call__(self, state, batch):
    with target.using(self._target), apart(batch):
      return self._jit(state, batch, *self.given(state))

  def lower(self, state, batch):
    with target.using(self._target), apart(batch):
      return self._jit.lower(state, batch, *self.given(state))

  def given(self, state) -> tuple:
    """What is only read, on the devices of the state; () for nothing."""
    given, mesh = self._given
    placed = getattr(state["step"], "sharding", None)
    if given is not None and isinstance(placed, NamedSharding):
      if placed.mesh != mesh:
        whole = NamedSharding(placed.mesh, PartitionSpec())
        self._given = jax.device_put(given, whole), placed.mesh
    return () if given is None else self._given[:1]


class Step:
  """Builds the state of a config's model and steps it.

  Attributes:
    init: (seed, lr) -> state; arrays of R seeds and rates -> R replicates.
    train: (state, batch) -> (state, metrics), compiled, donates its state.
    teacher: the structure of the model that it learns from, or None.
    layers: which arrays stack layers, as Sharding wants to know.
  """

  def __init__(self, cfg):
    self.cfg = cfg
    self.model = lm.abstract(cfg.model)
    self.layers = arrays.layers(self.model)
    self.roles = arrays.roles(self.model)
    self.clocks = arrays.clocks(self.model)
    self.optimizer = optimizer.make(cfg.train, self.roles)
    self.share = optimizer.schedule(cfg.train)
    self.teacher, given = None, None
    if cfg.train.teacher:
      model = models.trained(cfg.train.teacher).model
      self.teacher, given = arrays.split(model)
    self.train = Compiled(self._train, given, donate_argnums=0)
    self._inits = jax.jit(self._init), jax.jit(jax.vmap(self._init))

  def init(self, seed, lr):
    """A fresh state for a seed and a peak learning rate."""
    seed, lr = jnp.asarray(seed, jnp.uint32), jnp.asarray(lr, jnp.float32)
    return self._inits[seed.ndim](seed, lr)

  def _init(self, seed, lr):
    model = lm.build(self.cfg.model, rngs=arrays.rngs(seed))
    params, buffers = arrays.pure(model)
    state = {
      "params": params,
      "buffers": buffers,
      "opt": self.optimizer.init(params),
      "step": jnp.int32(0),
      "seed": seed,
      "lr": lr,
      "alive": jnp.bool_(True),
    }
    return state | ({"ema": params} if self.cfg.train.ema else {})

  def _train(self, state, batch, given=None):
    if state["step"].ndim == 0:
      return self._one(state, batch, given)
    own = 0 if batch["tokens"].ndim == 3 else None
    return jax.vmap(self._one, in_axes=(0, own, None))(state, batch, given)

  def _one(self, state, batch, given):
    key = jax.random.fold_in(jax.random.key(state["seed"]), state["step"])
    at, bits = state, self.cfg.train.noise_bits
    if bits:  # its gradient is that of what it is added to
      own = jax.random.fold_in(key, 1)
      params = rounding.noisy(state["params"], self.roles, bits, own)
      at = {**state, "params": params}
    key = key if self.cfg.model.dropout else None
    (loss, aux), grads = self._gradients(at, batch, key, given)

    norm = optax.tree.norm(grads)
    scale = 1.0
    if self.cfg.train.clip:
      scale = jnp.minimum(1.0, self.cfg.train.clip / jnp.maximum(norm, 1e-12))
    grads = jax.tree.map(lambda g: g * scale, grads)
    updates, opt = self.optimizer.update(grads, state["opt"], state["params"])
    updates = optimizer.decayed(
      self.cfg.train, self.roles, updates, state["params"], state["step"]
    )
    rate = state["lr"] * self.share(state["step"])
    params = jax.tree.map(lambda p, u: p + rate * u, state["params"], updates)

    alive = state["alive"] & jnp.isfinite(loss) & jnp.isfinite(norm)
    done = (state["step"] + 1) / self.cfg.train.steps
    clocks = unflatten_dict(dict.fromkeys(self.clocks, done))
    new = {
      **state,
      "params": params,
      "buffers": overwrite(overwrite(state["buffers"], aux.next), clocks),
      "opt": opt,
      "step": state["step"] + 1,
    }
    if "ema" in state:
      kept = self.cfg.train.ema
      new["ema"] = optimizer.average(kept, state["ema"], params, state["step"])
    new = jax.tree.map(lambda a, b: jnp.where(alive, a, b), new, state)
    new["alive"] = alive
    metrics = {"loss": loss, "grad_norm": norm, "alive": alive}
    return new, metrics | aux.statistics

  def _gradients(self, state, batch, key, given=None):
    """Loss and aux of the whole batch and their gradient, M parts at a time."""
    t, teacher = self.cfg.train, None
    if self.teacher is not None:
      model = arrays.join(self.teacher, given)
      teacher = lm.Teacher(model, t.teacher_weight, t.teacher_temperature)

    def objective(params, part, key):
      model = arrays.fill(self.model, params, state["buffers"])
      loss, aux = model.loss(**part, key=key, teacher=teacher)
      return loss + aux.loss, (loss, aux)

    gradient = jax.grad(objective, has_aux=True)
    parts = t.accumulate
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
