"""What this machine has, and what stands in the way of training on it.

python -m launch.doctor [--platform=cpu|gpu|tpu]

Exit code 1 where there is an accelerator and JAX sees a CPU, unless --platform
asks for that.
"""

from launch import command


def main(argv):
  command.no_more(argv)
  from train import doctor, platform

  asked = command.PLATFORM.value
  show(doctor.before())
  try:
    platform.setup(asked)
  except ImportError as error:
    raise ValueError(f"JAX is not whole: {error}") from error
  show(doctor.after())
  import jax

  found = platform.sure()
  if found and asked is None and jax.default_backend() == "cpu":
    why = ", ".join(doctor.hidden()) or "see versions and held"
    names = " and ".join(f"a {name} ({at})" for name, at in found.items())
    raise ValueError(f"JAX sees a CPU beside {names}: {why}")


def show(facts):
  for word, what in facts:
    print(f"{word:13} {what}", flush=True)


if __name__ == "__main__":
  command.run(main, prepared=False)
