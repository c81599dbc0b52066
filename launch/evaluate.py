"""Bits per byte over a whole split, the state carried through each document
(with learned positions, in windows of as many).

python -m launch.evaluate --workdir=runs/mamba2 [--data=stdlib] [--split=test]
  [--context=4096] [--chunk=1024] [--lanes=8]

Documents are scored side by side, in lanes, and none is cut: the score is that
of one stream, --lanes=1.
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
CHUNK = command.define_count("chunk", 1024, "Tokens of a lane a call.")
LANES = command.define_count(
  "lanes",
  None,
  "How many lanes at most; by default one a core of a CPU, else 32, or as many "
  "as a GiB a device holds the states of.",
)
WHICH = flags.DEFINE_enum("which", "best", ["best", "last"], "Checkpoint.")
flags.mark_flag_as_required("workdir")
MEMORY = "a smaller --lanes, --chunk or --context"


def main(argv):
  command.no_more(argv)
  from train import evaluate

  score, data, window, lanes = evaluate.whole(
    WORKDIR.value,
    data=DATA.value,
    split=SPLIT.value,
    context=CONTEXT.value,
    chunk=CHUNK.value,
    lanes=LANES.value,
    which=WHICH.value,
  )
  how = f"in {lanes} lane{'s' if lanes > 1 else ''}"
  alone = f" of windows of {window:,} tokens" if window else ""
  command.say(
    f"{WORKDIR.value} on {data.name} {SPLIT.value}: {score} over "
    f"{score.bytes:,} bytes, {how}{alone}"
  )
  if data.note:
    command.say(f"note: {data.note}")


if __name__ == "__main__":
  command.run(main, cores=True, memory=MEMORY)
