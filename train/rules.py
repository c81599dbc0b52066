"""What a run's config must be, beside what its model refuses."""

import math

import ml_collections

from train import models, rounding

# which fields must be what
RULES = (
  (
    "train.steps train.batch train.length train.accumulate train.log_every "
    "train.eval_every train.eval_bytes train.save_every train.keep "
    "train.model_devices",
    "at least 1",
    lambda x: x >= 1,
  ),
  (
    "train.lr train.epsilon train.teacher_temperature model.norm_eps",
    "positive and finite",
    lambda x: 0 < x < math.inf,
  ),
  (
    "train.clip train.decay train.warmup model.positions",
    "0 or a number above",
    lambda x: 0 <= x < math.inf,
  ),
  (
    "train.beta1 train.beta2 train.momentum train.ema model.dropout",
    "at least 0 and below 1",
    lambda x: 0 <= x < 1,
  ),
  (
    "train.final train.cooldown train.decay_final train.teacher_weight",
    "from 0 to 1",
    lambda x: 0 <= x <= 1,
  ),
  ("train.noise_bits", "0, 4, 6 or 8", lambda x: x in (0, *rounding.CLIP)),
  ("train.seed", "from 0 to 2**32 - 1", lambda x: 0 <= x < 2**32),
)


def resolve(cfg, data) -> ml_collections.ConfigDict:
  """cfg with the data's number of symbols.

  Raises:
    ValueError: it has another, or fields that no run can have.
  """
  cfg = cfg.copy_and_resolve_references()
  t = cfg.train
  for names, words, holds in RULES:
    for name in names.split():
      part, _, field = name.partition(".")
      if not holds(cfg[part][field]):
        raise ValueError(f"{name}={cfg[part][field]} must be {words}")
  if t.batch % t.accumulate:
    raise ValueError(
      f"train.accumulate={t.accumulate} must divide train.batch={t.batch}"
    )
  if data.is_task and t.length != data.length:
    raise ValueError(
      f"{data.name} makes sequences of {data.length}, and train.length is "
      f"{t.length}: give --length={data.length} to launch.compare, "
      f"--config.train.length={data.length} to launch.train"
    )
  if t.teacher:
    models.same_symbols(t.teacher, data, "train.teacher")
  given = cfg.model.vocab.size
  if given not in (0, data.vocab):
    raise ValueError(
      f"model.vocab.size={given}, but {data.name} has {data.vocab} symbols: "
      "leave it at 0, the data's own"
    )
  with cfg.unlocked():
    cfg.model.vocab.size = data.vocab
  return cfg
