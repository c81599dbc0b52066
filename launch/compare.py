"""Which architecture is better, by how much, and is that noise?

python -m launch.compare [--archs=a,b,c] [--params=500K|none] [--tokens=]
  [--length=] [--batch=] [--data=stdlib] [--seeds=3] [--lrs=...]
  [--optimizer=adamw|muon] [--workdir=]
python -m launch.compare --report=W1,W2 --workdir=OUT
"""

import re

from absl import flags

from launch import command

ARCHS = flags.DEFINE_list(
  "archs",
  ["attention", "mamba2", "gated_deltanet", "griffin", "experts"],
  "Configs to compare, by their file's name.",
)
PARAMS = flags.DEFINE_string(
  "params", "500K", "Parameters of every arm, or none for each config's own."
)
TOKENS = flags.DEFINE_string("tokens", "250K", "Tokens of one run.")
LENGTH = flags.DEFINE_integer("length", 256, "Tokens a sequence.")
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
REPORT = flags.DEFINE_list(
  "report", [], "Workdirs of finished comparisons to report together."
)
WORKDIR = flags.DEFINE_string("workdir", "runs/compare", "Where results go.")

UNITS = {"": 1, "K": 1_000, "M": 1_000_000, "G": 1_000_000_000}


def number(text: str) -> int:
  """500K -> 500000."""
  found = re.fullmatch(r"([\d.]+)([KMG]?)", text.strip(), re.IGNORECASE)
  if not found:
    raise ValueError(f"{text!r} is not a number such as 500K, 1.5M or 20000")
  return round(float(found[1]) * UNITS[found[2].upper()])


def main(argv):
  command.no_more(argv)
  from train import platform, report

  if REPORT.value:
    named = {path: report.read(path) for path in REPORT.value}
    conditions = report.merge(named)
  else:
    import configs
    from train import compare

    arms = {name: configs.load(name) for name in ARCHS.value}
    params = PARAMS.value.lower()
    plan = compare.Plan(
      params=None if params == "none" else number(params),
      tokens=number(TOKENS.value),
      length=LENGTH.value,
      batch=BATCH.value,
      data=DATA.value,
      seeds=SEEDS.value,
      lrs=tuple(map(float, LRS.value)),
      eval_bytes=number(EVAL_BYTES.value),
      optimizer=OPTIMIZER.value,
    )
    comparison = compare.Comparison(
      arms,
      plan,
      WORKDIR.value,
      say=command.say,
      together=TOGETHER.value,
    )
    conditions = comparison.run()
    if conditions is None:
      command.say(f"stopped; go on with: {platform.command()}")
      return
  files = report.write(conditions, WORKDIR.value)
  print(report.leaderboard(conditions))
  print("\n" + "\n".join(f"wrote {path}" for path in files.values()))


if __name__ == "__main__":
  command.run(main, cores=True)
