"""Bits per byte over a whole split, the state carried from end to end (with
learned positions, in windows of as many).

python -m launch.evaluate --workdir=runs/mamba2 [--data=stdlib] [--split=test]
  [--context=4096] [--chunk=1024]
"""

from absl import flags

from launch import command

WORKDIR = flags.DEFINE_string(
  "workdir", None, "A run's folder, or its artefact."
)
DATA = flags.DEFINE_string("data", None, "Data; by default the run's own.")
SPLIT = flags.DEFINE_enum("split", "test", ["train", "valid", "test"], "Which.")
CONTEXT = command.define_count(
  "context", None, "Tokens back that attention sees; by default the config's."
)
CHUNK = command.define_count("chunk", 1024, "Tokens a call.")
WHICH = flags.DEFINE_enum("which", "best", ["best", "last"], "Checkpoint.")
flags.mark_flag_as_required("workdir")
MEMORY = "a smaller --chunk or --context"


def main(argv):
  command.no_more(argv)
  from train import evaluate

  score, data, window = evaluate.whole(
    WORKDIR.value,
    data=DATA.value,
    split=SPLIT.value,
    context=CONTEXT.value,
    chunk=CHUNK.value,
    which=WHICH.value,
  )
  alone = f", in windows of {window:,} tokens" if window else ""
  command.say(
    f"{WORKDIR.value} on {data.name} {SPLIT.value}: {score} over "
    f"{score.bytes:,} bytes{alone}"
  )
  if data.note:
    command.say(f"note: {data.note}")


if __name__ == "__main__":
  command.run(main, memory=MEMORY)
