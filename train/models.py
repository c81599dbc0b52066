"""The one door to a trained model."""

from pathlib import Path
from typing import NamedTuple

import jax

from arch import arrays, lm
from train import artefact, checkpoint, hosts, tokenizer, workdir


class Trained(NamedTuple):
  """
  Attributes:
    config: the run's, nested dicts.
    tokens: its tokeniser.
    model: with its weights.
  """

  config: dict
  tokens: object
  model: lm.LM


def trained(path, which="best") -> Trained:
  """A run on text by its folder, or what launch.export made of one.

  Raises:
    ValueError: as `load`, or a run on a task.
  """
  if Path(path).is_file():
    return Trained(*artefact.read(path)[:3])
  config, tokens = workdir.of_run(path), tokenizer.of_run(path)
  return Trained(config, tokens, load(path, which))


def same_symbols(path, data, what: str):
  """ValueError where a run or an artefact reads other symbols than the data.

  Args:
    what: how the error names the path.
  """
  if data.is_task:
    return

  def told(tokens):
    return type(tokens).__name__, tokens.vocab, getattr(tokens, "hash", "")

  own, here = told(trained_tokens(path)), told(data.tokenizer)
  if own != here:
    raise ValueError(
      f"{what}={path} was trained on symbols of another tokeniser, "
      f"{' '.join(map(str, own)).rstrip()}, than {data.name} has here, "
      f"{' '.join(map(str, here)).rstrip()}"
    )


def trained_tokens(path):
  """The tokeniser of a run or an artefact."""
  if Path(path).is_file():
    return artefact.read(path).tokens
  return tokenizer.of_run(path)


def parameters(model) -> int:
  params, _ = arrays.pure(model)
  return sum(p.size for p in jax.tree.leaves(params))


def load(path, which="best"):
  """The model that a run has trained, without its optimiser; with averaged
  weights, where the run has some.

  Args:
    path: the run's folder, which is only read.
    which: "best", or "last".

  Raises:
    ValueError: no run, no whole checkpoint, or of another version's model.
  """
  if which not in ("best", "last"):
    raise ValueError(f"which={which!r}: best or last")
  config = workdir.of_run(path)
  model = abstract(config["model"], Path(path) / "config.json")
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
  learnt = "ema" if config.get("train", {}).get("ema") else "params"
  target = {learnt: params, "buffers": buffers}
  found = checkpoint.read(folder / str(step), target, part=True)
  found = hosts.own(found)
  return arrays.fill(model, found[learnt], found["buffers"])


def abstract(config, where):
  """The shapes of a model from a file; ValueError in one line for none."""
  try:
    return lm.abstract(config)
  except ValueError as e:
    raise ValueError(f"{where}: {e}") from None
  except (ArithmeticError, AttributeError, LookupError, TypeError) as e:
    raise ValueError(f"{where}: it describes no model: {e!r}") from None
