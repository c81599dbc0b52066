"""Trains one run; the same command again goes on where it stopped.

python -m launch.train --config=mamba2[:tiny|small|full]
  [--workdir=runs/mamba2] [--config.train.lr=3e-3 ...] [--set=vocab=codes ...]
  [--init=runs/OTHER] [--until=8h] [--distributed]
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from launch import command
from train import platform

CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "A config's name, or a file: mamba2, mamba2:tiny, configs/mamba2.py:small.",
  lock_config=True,
)
WORKDIR = flags.DEFINE_string(
  "workdir", None, "The run's folder; by default runs/NAME."
)
SET = flags.DEFINE_multi_string(
  "set",
  [],
  "FIELD=VALUE of the model, also of a field that the config does not set, as "
  "an arm of launch.compare has it: vocab=codes; may be given again.",
)
INIT = flags.DEFINE_string(
  "init",
  None,
  "A run's folder whose parameters this one begins with, at step 0 and with a "
  "fresh optimiser.",
)
UNTIL = command.define_until()
DISTRIBUTED = flags.DEFINE_bool(
  "distributed",
  False,
  "Train with the other processes that were started with the same command, on "
  "this host and others: see docs/hosts.md.",
)
flags.mark_flag_as_required("config")
MEMORY = (
  "--config.train.accumulate=2, --config.model.remat=block, "
  "--config.model.dtype=bfloat16, or a smaller --config.train.batch or "
  "--config.train.length"
)


def main(argv):
  command.no_more(argv)
  told = (s.partition("=")[2] for s in SET.value)
  apart = platform.apart([CONFIG.value.model.dtype, *told])
  platform.setup(command.PLATFORM.value, apart, DISTRIBUTED.value)
  import configs
  from train import data, hosts, loop, workdir
  from train.signals import Signals

  signals = Signals(UNTIL.value)
  name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
  cfg = configs.told(CONFIG.value, name, SET.value)
  path = WORKDIR.value or f"runs/{name.partition('.')[0]}"
  init = None if INIT.value is None else str(Path(INIT.value))

  def say(line):
    if hosts.first():
      command.say(line)

  def prepared():
    workdir.check(path, cfg, init)
    if init is not None:
      workdir.of_run(init)
    source = data.load(cfg.data.to_dict(), progress=say)
    return loop.resolve(cfg, source), source

  cfg, source = hosts.together(prepared)
  with signals:
    result = loop.run(cfg, path, source, init=init, signals=signals)
  place = f"{path}: step {result.step} of {cfg.train.steps}"
  if result.done:
    say(f"{place}, valid {result.scores[0]}")
    return 0
  kept = "saved; go on" if result.step else "nothing saved yet; start again"
  say(f"{place}, {kept} with: {platform.command()}")
  return command.stopped(result.stopped)


if __name__ == "__main__":
  command.run(main, memory=MEMORY, prepared=False)
