"""What a progress bar leaves in a file."""

import io
import sys

from tqdm import tqdm

from train import progress


def test_a_file_gets_lines(monkeypatch):
  out = io.StringIO()
  monkeypatch.setattr(sys, "stderr", out)
  monkeypatch.setattr(progress, "EVERY", 0.0)
  with progress.bar(total=3, desc="run") as bar:
    for _ in range(3):
      bar.update()
      tqdm.write("said", file=out)
  lines = out.getvalue().splitlines()
  bars = [line for line in lines if line.startswith("run: ")]
  assert lines.count("said") == 3 and len(bars) == len(lines) - 3
  assert "3/3" in bars[-1] and "\r" not in out.getvalue()


def test_a_file_is_not_filled(monkeypatch):
  out = io.StringIO()
  monkeypatch.setattr(sys, "stderr", out)
  for _ in progress.bar(range(10_000), "run"):
    pass
  assert len(out.getvalue().splitlines()) <= 2


def test_a_terminal_gets_one_line(monkeypatch):
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  out = Terminal()
  monkeypatch.setattr(sys, "stderr", out)
  for _ in progress.bar(range(10), "run"):
    pass
  assert out.getvalue().count("\n") == 1 and "\r" in out.getvalue()
