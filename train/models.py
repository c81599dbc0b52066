"""The one door to a trained model."""

from pathlib import Path

from arch import arrays, lm
from train import checkpoint, workdir


def load(path, which="best"):
  """The model that a run has trained, without its optimiser.

  Args:
    path: the run's folder, which is only read.
    which: "best", or "last".

  Raises:
    ValueError: no run, no whole checkpoint, or of another version's model.
  """
  if which not in ("best", "last"):
    raise ValueError(f"which={which!r}: best or last")
  model = abstract(workdir.of_run(path)["model"], Path(path) / "config.json")
  folder, whole = Path(path) / checkpoint.FOLDER, []
  for step in checkpoint.ranked(path):
    found = folder / str(step)
    why = checkpoint.damage(found)
    if why:
      checkpoint.say(f"{found} is damaged and left out: {why}")
    else:
      whole.append(step)
  if not whole:
    why = ""
    if (Path(path) / "result.json").exists():
      why = ": it was dropped once scored; see --keep of launch.compare"
    raise ValueError(f"{path} holds no whole checkpoint{why}")
  step = whole[0] if which == "best" else max(whole)
  if len(whole) < len(checkpoint.steps(path)):
    checkpoint.say(f"{path}: the checkpoint of step {step} is used")
  params, buffers = arrays.pure(model)
  target = {"params": params, "buffers": buffers}
  return arrays.fill(
    model, **checkpoint.read(folder / str(step), target, part=True)
  )


def abstract(config, where):
  """The shapes of a model from a file; ValueError in one line for none."""
  try:
    return lm.abstract(config)
  except ValueError as e:
    raise ValueError(f"{where}: {e}") from None
  except (ArithmeticError, AttributeError, LookupError, TypeError) as e:
    raise ValueError(f"{where}: it describes no model: {e!r}") from None
