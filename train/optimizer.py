"""AdamW and Muon by the role of each parameter, and the rate's schedule.

Both answer updates for a learning rate of one; the step multiplies them by
the peak rate, which belongs to its state, and by the schedule. So one
compiled program trains several rates at once.
"""

import jax
import jax.numpy as jnp
import optax

from arch.config import closest

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("cosine", "wsd")


def schedule(cfg):
  """Step -> share of the peak rate, from 0-based steps.

  `cosine`: linear warm-up, then half a cosine down to `final`. `wsd`
  (warm-up, stable, decay; https://arxiv.org/abs/2404.06395): linear warm-up,
  one, and a linear fall to `final` over the last `cooldown` share of steps.

  Args:
    cfg: a config's `train`: steps, warmup (steps), schedule, final, cooldown.
  """
  if cfg.schedule not in SCHEDULES:
    raise ValueError(
      f"unknown schedule {cfg.schedule!r}: {closest(cfg.schedule, SCHEDULES)}"
    )
  if cfg.warmup >= cfg.steps and cfg.steps > 1:
    raise ValueError(
      f"train.warmup={cfg.warmup} must be below train.steps={cfg.steps}: give "
      f"a --config.train.warmup such as {cfg.steps // 10}"
    )

  def share(step):
    step = jnp.float32(step)
    warm = jnp.minimum(1.0, (step + 1) / (cfg.warmup + 1))
    if cfg.schedule == "cosine":
      done = (step - cfg.warmup) / max(1, cfg.steps - cfg.warmup)
      fall = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0, 1)))
    else:
      left = (cfg.steps - step) / max(1.0, cfg.cooldown * cfg.steps)
      fall = jnp.clip(left, 0, 1)
    return warm * (cfg.final + (1 - cfg.final) * fall)

  return share


def matrices(roles: dict) -> dict:
  return jax.tree.map(lambda role: role == "Matrix", roles)


def decayed(cfg, roles: dict, updates, params, step):
  """The updates of a step with its weight decay, where that falls from
  `decay` to `decay_final` of it."""
  if cfg.decay_final == 1:
    return updates
  done = jnp.float32(step) / max(1, cfg.steps - 1)
  decay = cfg.decay * (1 - (1 - cfg.decay_final) * jnp.minimum(done, 1))
  return jax.tree.map(
    lambda u, p, own: u - decay * p if own else u,
    updates,
    params,
    matrices(roles),
  )


def average(kept: float, old, new, step):
  """An exponential average of parameters after a step, of 0-based steps:
  `kept` of the old one, but less at first, when that is of few."""
  kept = jnp.minimum(kept, (1 + jnp.float32(step)) / (10 + step))
  return jax.tree.map(lambda a, b: a + (1 - kept) * (b - a), old, new)


def make(cfg, roles: dict) -> optax.GradientTransformation:
  """The optimiser of a config's `train`, for a learning rate of one.

  Weight decay acts on matrices only, and so does Muon; everything else gets
  AdamW. Muon's updates are scaled to the size of Adam's (root mean square .2,
  https://arxiv.org/abs/2502.16982), so that both want rates of one order.

  Args:
    cfg: optimizer, beta1, beta2, epsilon, decay, momentum.
    roles: the role of every parameter, from arch.lm.roles.
  """
  if cfg.optimizer not in OPTIMIZERS:
    raise ValueError(
      f"unknown optimizer {cfg.optimizer!r}: "
      f"{closest(cfg.optimizer, OPTIMIZERS)}"
    )
  # one that changes with the steps is `decayed`'s
  decay = cfg.decay if cfg.decay_final == 1 else 0.0
  if cfg.optimizer == "adamw":
    return optax.adamw(
      1.0,
      b1=cfg.beta1,
      b2=cfg.beta2,
      eps=cfg.epsilon,
      weight_decay=decay,
      mask=matrices(roles),
    )

  def axes(params):
    # by role: optax's own default goes by ndim, and stacked layers are 3-D
    return jax.tree.map(
      lambda role, p: (
        optax.contrib.MuonDimensionNumbers(p.ndim - 2, p.ndim - 1)
        if role == "Matrix"
        else None
      ),
      roles,
      params,
    )

  return optax.contrib.muon(
    1.0,
    beta=cfg.momentum,
    weight_decay=decay,
    adam_b1=cfg.beta1,
    adam_b2=cfg.beta2,
    eps=cfg.epsilon,
    muon_weight_dimension_numbers=axes,
    consistent_rms=0.2,
  )
