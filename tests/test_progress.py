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


def test_a_line_of_a_long_name_is_whole_in_80_columns(monkeypatch):
  out = io.StringIO()
  monkeypatch.setattr(sys, "stderr", out)
  monkeypatch.setattr(progress, "EVERY", 0.0)
  name = "gated_deltanet:neg_eigval=True final seed 1 lr 0.0025"
  with progress.bar(
    total=123_456_789, desc=name, unit="tok", unit_scale=True
  ) as bar:
    bar.start_t -= 10_000
    bar.set_postfix_str("loss 1.234", refresh=False)
    bar.update(12_345_678)
  line = out.getvalue().splitlines()[-1]
  assert len(line) <= 80 and line.endswith("tok/s, loss 1.234")
  assert line.startswith("gated_del…l seed 1 lr 0.0025: 12.3M/123M, ")


def test_a_file_is_not_filled(monkeypatch):
  out = io.StringIO()
  monkeypatch.setattr(sys, "stderr", out)
  for _ in progress.bar(range(10_000), "run"):
    pass
  assert len(out.getvalue().splitlines()) <= 2


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_a_notebook_is_a_file(monkeypatch):
  out = Terminal()
  monkeypatch.setattr(sys, "stderr", out)
  monkeypatch.setenv(progress.NOTEBOOK, "7")
  for _ in progress.bar(range(10), "run"):
    pass
  assert "\r" not in out.getvalue() and "run: 10/10" in out.getvalue()


def test_a_terminal_gets_one_line(monkeypatch):
  monkeypatch.delenv(progress.NOTEBOOK, raising=False)
  out = Terminal()
  monkeypatch.setattr(sys, "stderr", out)
  for _ in progress.bar(range(10), "run"):
    pass
  assert out.getvalue().count("\n") == 1 and "\r" in out.getvalue()


def test_a_stage_is_a_line_of_80_columns(monkeypatch):
  out = io.StringIO()
  monkeypatch.setattr(sys, "stderr", out)
  with progress.bar(total=9, desc="x" * 99, postfix="compiling") as bar:
    bar.set_postfix_str("scoring")
  lines = out.getvalue().splitlines()
  assert max(map(len, lines)) <= 80 and "scoring" in lines[-1]
