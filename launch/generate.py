"""Streams text as it comes, from the carried state.

python -m launch.generate --workdir=runs/mamba2 --prompt="import os" \
  [--temperature=0.8] [--top_p=0.95] [--seed=0] [--bytes=500]
"""

import os
import sys

from absl import flags

from launch import command

WORKDIR = flags.DEFINE_string(
  "workdir", None, "A run's folder, or its artefact."
)
PROMPT = flags.DEFINE_string("prompt", "", "What the text begins with.")
TEMPERATURE = flags.DEFINE_float(
  "temperature", 0.8, "0 for the likeliest symbol.", lower_bound=0
)
TOP_P = flags.DEFINE_float(
  "top_p", 0.95, "Share of probability to draw from.", 0, 1
)
SEED = flags.DEFINE_integer("seed", 0, "Of the draws.")
BYTES = command.define_count("bytes", 500, "How much to write.")
WHICH = flags.DEFINE_enum("which", "best", ["best", "last"], "Checkpoint.")
flags.mark_flag_as_required("workdir")


def main(argv):
  command.no_more(argv)
  from train import generate

  prompt = os.fsencode(PROMPT.value)  # whatever bytes the shell gave
  pieces = generate.stream(
    WORKDIR.value,
    prompt,
    temperature=TEMPERATURE.value,
    top_p=TOP_P.value,
    seed=SEED.value,
    size=BYTES.value,
    which=WHICH.value,
  )
  out = sys.stdout.buffer
  out.write(prompt + next(pieces))
  out.flush()
  for piece in pieces:
    out.write(piece)
    out.flush()
  out.write(b"\n")


if __name__ == "__main__":
  command.run(main)
