"""Which architecture is better, by how much, and is that noise?

python -m launch.compare [--archs=a,b,c] [--params=500K|none] [--tokens=]
  [--length=] [--batch=] [--data=stdlib] [--seeds=3] [--lrs=...]
  [--optimizer=adamw|muon] [--workdir=]
python -m launch.compare --report=W1,W2 --workdir=OUT

An arm is a config's name, or a variant of it: mamba,mamba:negative=True.
"""

from absl import flags

from launch import command

ARCHS = flags.DEFINE_list(
  "archs",
  ["attention", "mamba2", "gated_deltanet", "griffin", "experts"],
  "Configs to compare, by their file's name; NAME:FIELD=VALUE for a variant.",
)
PARAMS = flags.DEFINE_string(
  "params", "500K", "Parameters of every arm, or none for each config's own."
)
TOKENS = flags.DEFINE_string("tokens", "250K", "Tokens of one run.")
LENGTH = flags.DEFINE_integer(
  "length", None, "Tokens a sequence; by default a task's own, or 256."
)
BATCH = flags.DEFINE_integer("batch", 8, "Sequences a step.")
DATA = flags.DEFINE_string(
  "data", "stdlib", "stdlib, text:PATH, tfds:NAME[/CONFIG] or task:NAME."
)
SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds at each arm's best rate.")
LRS = flags.DEFINE_list(
  "lrs", ["3e-3", "1e-2", "3e-2"], "Grid of peak learning rates."
)
OPTIMIZER = flags.DEFINE_enum(
  "optimizer", "adamw", ["adamw", "muon"], "Of every arm."
)
EVAL_BYTES = flags.DEFINE_string(
  "eval_bytes", "64K", "Size of the slices that are scored."
)
TOGETHER = flags.DEFINE_integer(
  "together",
  0,
  "Runs that one program trains at once; 0: one on a CPU, else all.",
)
OLD_CODE = flags.DEFINE_bool(
  "old_code", False, "Keep finished runs that older code of an arm trained."
)
FIGURES = flags.DEFINE_bool(
  "figures", False, "Also write every figure as SVG, PNG and PDF."
)
REPORT = flags.DEFINE_list(
  "report", None, "Workdirs of finished comparisons to report together."
)
WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where results go; by default runs/compare."
)


def rates() -> tuple[float, ...]:
  try:
    return tuple(map(float, LRS.value))
  except ValueError:
    raise ValueError(
      f"--lrs={','.join(LRS.value)}: name rates as in --lrs=1e-3,3e-3"
    ) from None


def main(argv):
  command.no_more(argv)
  from train import platform, report

  if FIGURES.value:
    report.converter()  # not after hours of training
  if REPORT.value is not None:
    workdir = WORKDIR.value
    conditions = report.gather(REPORT.value, workdir)
  else:
    import configs
    from train import compare

    workdir = WORKDIR.value or "runs/compare"
    own_sizes = PARAMS.value.lower() == "none"
    plan = compare.Plan(
      params=None if own_sizes else command.number(PARAMS),
      tokens=command.number(TOKENS),
      length=LENGTH.value,
      batch=BATCH.value,
      data=DATA.value,
      seeds=SEEDS.value,
      lrs=rates(),
      eval_bytes=command.number(EVAL_BYTES),
      optimizer=OPTIMIZER.value,
    )
    comparison = compare.Comparison(
      configs.several(ARCHS.value),
      plan,
      workdir,
      say=command.say,
      together=TOGETHER.value,
      old_code=OLD_CODE.value,
    )
    conditions = comparison.run()
    if conditions is None:
      command.say(f"stopped; go on with: {platform.command()}")
      return
  print(report.leaderboard(conditions), flush=True)
  files = report.write(conditions, workdir, FIGURES.value)
  print("\n" + "\n".join(f"wrote {path}" for path in files.values()))


if __name__ == "__main__":
  command.run(main, cores=True)
