"""Any command of the lab on Kaggle's TPU, by Kaggle's own tool.

python -m launch.kaggle push --name=small-lm [--accelerator=TpuV5E8]
  [--hours=8.5] [--user=] -- python -m launch.compare --archs=a,b
python -m launch.kaggle status
python -m launch.kaggle pull [--out=runs/small-lm]
python -m launch.kaggle resume

push sends this checkout as it is and the command after --, whose results in
runs are kept; status tells of it; pull brings what it left; resume runs the
same again, with what it left. Wants pip install kaggle, and kaggle auth login.
"""

from absl import flags

from launch import command

NAME = flags.DEFINE_string(
  "name", None, "Of the run, on Kaggle: small letters, digits and dashes."
)
USER = flags.DEFINE_string(
  "user", None, "On Kaggle; by default who the tool is logged in as."
)
FOLDER = flags.DEFINE_string(
  "folder", "kaggle-run", "Where push writes what is sent, for the others."
)
ACCELERATOR = flags.DEFINE_string(
  "accelerator", "TpuV5E8", "Kaggle's name of it, or none for a CPU."
)
HOURS = command.define_real(
  "hours", 8.5, "After which the command saves and stops, if it has --until."
)
OUT = flags.DEFINE_string(
  "out", None, "A new folder for what pull brings; by default runs/NAME."
)


def main(argv):
  from train import kaggle

  action, words = argv[1] if argv[1:] else "none", argv[2:]
  if action == "push":
    lines = kaggle.push(
      FOLDER.value,
      words,
      NAME.value,
      USER.value,
      ACCELERATOR.value,
      HOURS.value,
    )
  elif action in ("status", "pull", "resume"):
    command.no_more(argv[1:])
    given = [OUT.value] if action == "pull" else []
    lines = getattr(kaggle, action)(FOLDER.value, *given)
  else:
    raise ValueError(f"{action} is not one of push, status, pull, resume")
  for line in lines:
    command.say(line)
  return 0


if __name__ == "__main__":
  command.run(main, prepared=False)
