"""What a comparison would take on a TPU that is not here: memory and hours.

python -m launch.estimate --chip=v5e-1|v5e-8|v6e-1 [--hours=9]
  and the flags of launch.compare, such as --archs= --params= --tokens=

A TPU's compiler runs on any Linux machine with libtpu (.[tpu]). It says what a
step needs of a chip's memory, and how many cycles it expects of it. Flags that
say where results go, or what is kept of them, change nothing here.
"""

from absl import flags

from launch import command, compare

CHIP = flags.DEFINE_enum(
  "chip",
  "v5e-8",
  ["v5e-1", "v5e-8", "v6e-1"],
  "Colab has v5e-1, Kaggle v5e-8.",
)
HOURS = command.define_real(
  "hours", None, "Of a session; by default the site's."
)
flags.adopt_module_key_flags(compare)
flags.set_default(command.PLATFORM, "cpu")  # where the compiler runs


def main(argv):
  command.no_more(argv)
  import jax

  import configs
  from train import estimate

  # it keeps programs of what is here
  jax.config.update("jax_enable_compilation_cache", False)

  plan = compare.plan()
  lines = estimate.comparison(
    configs.several(compare.ARCHS.value, plan.settings),
    plan,
    CHIP.value,
    together=compare.TOGETHER.value,
    processes=compare.CHIPS.value,
    hours=HOURS.value,
    say=command.say,
  )
  for line in lines:
    print(line, flush=True)


if __name__ == "__main__":
  command.run(main, memory=compare.MEMORY)
