"""Which architecture is better, by how much, and is that noise?

python -m launch.compare [--archs=a,b,c|all] [--params=100K|none]
  [--flops=1M] [--tokens=] [--length=] [--batch=] [--data=stdlib] [--seeds=3]
  [--lrs=...] [--optimizer=adamw|muon] [--dtype=bfloat16] [--remat=auto|block]
  [--set=FIELD=VALUE] [--workdir=] [--until=8h] [--chips=8]
python -m launch.compare --report=W1,W2 --workdir=OUT

An arm is a config's name, or a variant of it: mamba,mamba:negative=True.
"""

from absl import flags

from launch import command
from train import platform, workers
from train.plan import Plan

ARCHS = flags.DEFINE_list(
  "archs",
  ["attention", "mamba2", "gated_deltanet", "griffin", "experts"],
  "Configs to compare, by their file's name, or all; NAME:FIELD=VALUE for a "
  "variant.",
)
PARAMS = command.define_count(
  "params",
  Plan.params,
  "Parameters of every arm, or none for each config's own.",
  none=True,
)
FLOPS = command.define_count(
  "flops",
  None,
  "FLOPs a token of every arm's pass forward at --length, in place of "
  "--params.",
)
TOKENS = command.define_count("tokens", Plan.tokens, "Tokens of one run.")
LENGTH = command.define_count(
  "length", None, "Tokens a sequence; by default a task's own, or 256."
)
BATCH = command.define_count("batch", Plan.batch, "Sequences a step.")
DATA = flags.DEFINE_string(
  "data",
  Plan.data,
  "stdlib, text:PATH, bytes:PATH, tfds:NAME[/CONFIG] or task:NAME.",
)
SEEDS = command.define_count(
  "seeds", Plan.seeds, "Seeds at each arm's best rate."
)
LRS = flags.DEFINE_list(
  "lrs", [f"{lr:g}" for lr in Plan.lrs], "Grid of peak learning rates."
)
OPTIMIZER = flags.DEFINE_enum(
  "optimizer", Plan.optimizer, ["adamw", "muon"], "Of every arm."
)
DTYPE = flags.DEFINE_enum(
  "dtype",
  None,
  ["float32", "bfloat16", "mixed"],
  "Compute dtype of every arm; by default its config's, float32; mixed rounds "
  "operands of products to bfloat16.",
)
REMAT = flags.DEFINE_enum(
  "remat",
  None,
  ["none", "auto", "block"],
  "What every arm computes again for the gradient: nothing; all but products; "
  "or whole blocks, in the least memory.",
)
SET = flags.DEFINE_multi_string(
  "set",
  [],
  "FIELD=VALUE of every arm, as model.vocab.tied=True or train.accumulate=2; "
  "may be given again.",
)
EVAL_BYTES = command.define_count(
  "eval_bytes", Plan.eval_bytes, "Size of the slices that are scored."
)
TOGETHER = command.define_count(
  "together",
  0,
  "Runs that one program trains at once; 0: one on a CPU, else all.",
  least=0,
)
CHIPS = command.define_count(
  "chips",
  0,
  "Processes that train runs at the same time, each on a chip of its own (on a "
  "core, on a CPU); 0: this one, on all.",
  least=0,
)
KEEP = flags.DEFINE_enum(
  "keep",
  "one",
  ["none", "one", "all"],
  "Whose states stay once a run is scored, for launch.evaluate and "
  "launch.generate: of none, of every arm's first seed, of all.",
)
OLD_CODE = flags.DEFINE_bool(
  "old_code", False, "Keep finished runs that older code of an arm trained."
)
UNTIL = command.define_until()
FIGURES = flags.DEFINE_bool(
  "figures", False, "Also write every figure as SVG, PNG and PDF."
)
REPORT = flags.DEFINE_list(
  "report", None, "Workdirs of finished comparisons to report together."
)
WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Where results go; by default runs/compare, and what is not as by default: "
  "runs/compare-book-params2M.",
)
MEMORY = (
  "--together=1, --remat=block, --set=train.accumulate=2, "
  "--dtype=bfloat16, or a smaller --batch, --length or --params"
)


def rates() -> tuple[float, ...]:
  try:
    return tuple(map(float, LRS.value))
  except ValueError:
    raise ValueError(
      f"--lrs={','.join(LRS.value)}: name rates as in --lrs=1e-3,3e-3"
    ) from None


def params() -> int | None:
  if FLOPS.value is not None and not PARAMS.present:
    return None
  return PARAMS.value or None


def settings() -> tuple[str, ...]:
  given = {"dtype": DTYPE.value, "remat": REMAT.value}
  own = [f"model.{name}={value}" for name, value in given.items() if value]
  return (*own, *SET.value)


def plan() -> Plan:
  """What the flags ask for."""
  return Plan(
    params=params(),
    flops=FLOPS.value,
    tokens=TOKENS.value,
    length=LENGTH.value,
    batch=BATCH.value,
    data=DATA.value,
    seeds=SEEDS.value,
    lrs=rates(),
    eval_bytes=EVAL_BYTES.value,
    optimizer=OPTIMIZER.value,
    settings=settings(),
  )


def main(argv):
  command.no_more(argv)
  asked = command.PLATFORM.value
  chips = workers.chips(asked, CHIPS.value) if CHIPS.value else None
  # a chip is held by the process that trains on it
  apart = platform.apart(s.partition("=")[2] for s in settings())
  platform.setup(*("cpu",) if chips else (asked, apart))
  from train import report

  if FIGURES.value:
    report.converter()  # not after hours of training
  if REPORT.value is not None:
    workdir = WORKDIR.value
    conditions = report.gather(REPORT.value, workdir)
  else:
    import configs
    from train import compare

    asked = plan()
    workdir = WORKDIR.value or f"runs/{asked.folder}"
    comparison = compare.Comparison(
      configs.several(ARCHS.value, asked.settings),
      asked,
      workdir,
      say=command.say,
      together=TOGETHER.value,
      old_code=OLD_CODE.value,
      keep=KEEP.value,
      seconds=UNTIL.value,
      chips=chips,
    )
    conditions = comparison.run()
    if conditions is None:
      command.say(f"stopped; go on with: {platform.command()}")
      return command.stopped(comparison.signals.name)
  print(report.leaderboard(conditions), flush=True)
  files = report.write(conditions, workdir, FIGURES.value)
  print("\n" + "\n".join(f"wrote {path}" for path in files.values()))
  return 0


if __name__ == "__main__":
  command.run(main, memory=MEMORY, prepared=False)
