"""Published checkpoints in Hugging Face's format, in and out.

python -m launch.convert --from=FOLDER --workdir=runs/NAME
python -m launch.convert --workdir=runs/NAME --to=FOLDER
"""

from absl import flags

from launch import command

FROM = flags.DEFINE_string("from", None, "A folder to read.")
TO = flags.DEFINE_string("to", None, "A folder to write, in the same format.")
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.")
WHICH = flags.DEFINE_enum("which", "best", ["best", "last"], "Checkpoint.")
flags.mark_flag_as_required("workdir")


def main(argv):
  command.no_more(argv)
  import configs
  from train import convert

  if (FROM.value is None) == (TO.value is None):
    raise ValueError("name one folder: --from to read it, --to to write it")
  if FROM.value:
    found = convert.into(FROM.value, WORKDIR.value, configs.base_config())
    command.say(
      f"{WORKDIR.value}: {found['type']}, {found['params']:,} parameters; "
      f"tokenizer {found['tokenizer']}"
    )
    for note in found["notes"]:
      command.say(f"note: {note}")
  else:
    count = convert.out_of(WORKDIR.value, TO.value, WHICH.value)
    command.say(f"{TO.value}: {count} tensors, and config.json")


if __name__ == "__main__":
  command.run(main)
