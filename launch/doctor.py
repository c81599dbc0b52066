"""What this machine has, and what stands in the way of training on it.

python -m launch.doctor [--platform=cpu|gpu|tpu]

Exit code 1 where there is an accelerator that JAX does not see.
"""

from launch import command


def main(argv):
  command.no_more(argv)
  from train import doctor, platform

  show(doctor.before())
  platform.setup(command.PLATFORM.value)
  show(doctor.after())


def show(facts):
  for word, what in facts:
    print(f"{word:13} {what}", flush=True)


if __name__ == "__main__":
  command.run(main, prepared=False)
