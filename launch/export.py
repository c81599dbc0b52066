"""A trained model as one small file, which evaluate and generate read.

python -m launch.export --workdir=runs/mamba2 --out=mamba2.slm [--bits=6]
"""

from absl import flags

from launch import command

WORKDIR = flags.DEFINE_string("workdir", None, "A trained run's folder.")
OUT = flags.DEFINE_string("out", None, "The file to write.")
BITS = flags.DEFINE_enum(
  "bits",
  "16",
  ["16", "8", "6", "4", "ternary"],
  "Of matrices and tables; everything else has 16.",
)
WHICH = flags.DEFINE_enum("which", "best", ["best", "last"], "Checkpoint.")
flags.mark_flags_as_required(["workdir", "out"])


def main(argv):
  command.no_more(argv)
  from train import artefact, models, workdir

  workdir.check_writable(OUT.value)
  artefact.coder()
  found = models.trained(WORKDIR.value, WHICH.value)
  size = artefact.write(
    OUT.value, found.config, found.tokens, found.model, BITS.value
  )
  weights = models.parameters(found.model)
  command.say(
    f"{OUT.value}: {size:,} bytes, {8 * size / weights:.2f} bits for each of "
    f"{weights:,} parameters, config and tokeniser included"
  )


if __name__ == "__main__":
  command.run(main)
