"""The commands, and what each is for: python -m launch."""

import ast
import textwrap
from pathlib import Path


def commands() -> dict[str, str]:
  """Name of a command -> the first line of its docstring."""
  found = {}
  for file in sorted(Path(__file__).parent.glob("[a-z]*.py")):
    text = file.read_text(encoding="utf-8")
    if "\n  command.run(" in text:
      words = ast.get_docstring(ast.parse(text)).partition("\n\n")[0]
      found[file.stem] = " ".join(words.split())
  return found


if __name__ == "__main__":
  for name, line in commands().items():
    text = textwrap.wrap(line, 76, initial_indent="  ", subsequent_indent="  ")
    print(f"python -m launch.{name}", *text, sep="\n")
  print("\nEach has --help.")
