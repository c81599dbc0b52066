"""Trains one run; the same command again goes on where it stopped.

python -m launch.train --config=configs/mamba2.py:small --workdir=runs/mamba2 \
  [--config.train.lr=3e-3 ...]
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from launch import command

CONFIG = config_flags.DEFINE_config_file(
  "config", None, "configs/NAME.py or configs/NAME.py:SIZE.", lock_config=True
)
WORKDIR = flags.DEFINE_string(
  "workdir", None, "The run's folder; by default runs/NAME."
)
flags.mark_flag_as_required("config")


def main(argv):
  command.no_more(argv)
  from train import data, loop, platform

  cfg = CONFIG.value
  name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
  path = WORKDIR.value or f"runs/{name.partition('.')[0]}"
  source = data.load(cfg.data.to_dict(), progress=command.say)
  cfg = loop.resolve(cfg, source)
  result = loop.run(cfg, path, source)
  place = f"{path}: step {result.step} of {cfg.train.steps}"
  if result.done:
    command.say(f"{place}, valid {result.scores[0]}")
  else:
    kept = "saved; go on" if result.step else "nothing saved yet; start again"
    command.say(f"{place}, {kept} with: {platform.command()}")


if __name__ == "__main__":
  command.run(main, cores=True)
