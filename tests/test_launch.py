"""The commands, as a user runs them: in processes of their own."""

import os
import re
import signal
import subprocess
import sys
import time
import types

import pytest
from models import ROOT

from launch import command as launch_command
from train import metrics


def command(name, *words, cwd=ROOT, **fields):
  env = {**os.environ, "JAX_PLATFORMS": "cpu"}
  env.pop("XLA_FLAGS", None)
  return subprocess.Popen(
    [sys.executable, "-m", f"launch.{name}", *map(str, words)],
    cwd=cwd,
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    **fields,
  )


def run(name, *words):
  process = command(name, *words)
  text, _ = process.communicate(timeout=240)
  return process.returncode, text


pytestmark = pytest.mark.xdist_group("launch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("text")
  for split, n in (("train", 400), ("valid", 30), ("test", 30)):
    (path / f"{split}.txt").write_text("to be or not to be\n" * n)
  return path


def training(folder, path, *words):
  return (
    "--config=configs/rglru.py:tiny",
    f"--config.data.name=text:{folder}",
    "--config.train.steps=300",
    "--config.train.length=57",
    "--config.train.warmup=5",
    "--config.train.eval_every=100",
    "--config.train.save_every=20",
    "--config.train.eval_bytes=200",
    f"--workdir={path}",
    *words,
  )


def numbers(path):
  return [
    {k: v for k, v in line.items() if k != "seconds"}
    for line in metrics.read(path)
  ]


def until(path, step):
  """Waits until a run has logged a step."""
  for _ in range(1200):
    if (path / "metrics.jsonl").exists() and any(
      line["step"] >= step for line in metrics.read(path)
    ):
      return
    time.sleep(0.1)
  raise TimeoutError(f"{path} logged no step {step}")


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
  path = tmp_path_factory.mktemp("runs") / "whole"
  code, text = run("train", *training(folder, path))
  assert code == 0, text
  return path, text


@pytest.mark.smoke
def test_train_then_evaluate_then_generate(trained):
  path, text = trained
  assert re.search(r"step 300 of 300, valid nats [\d.]+, bits_per_byte", text)
  code, text = run("evaluate", f"--workdir={path}", "--chunk=64")
  found = re.search(r"bits_per_byte ([\d.]+) over 570 bytes", text)
  assert code == 0 and float(found[1]) < 1, text
  code, text = run(
    "generate", f"--workdir={path}", "--prompt=to be", "--bytes=30"
  )
  assert code == 0 and "or not to be" in text, text


def test_kill_9_and_the_same_command_again(trained, folder, tmp_path):
  whole, _ = trained
  path = tmp_path / "run"
  process = command("train", *training(folder, path))
  until(path, 30)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  code, text = run("train", *training(folder, path))
  assert code == 0, text
  assert numbers(path) == numbers(whole)


def test_sigterm_saves_and_says_how_to_go_on(folder, tmp_path):
  path = tmp_path / "run"
  process = command("train", *training(folder, path))
  until(path, 10)
  other = command("train", *training(folder, path))
  text, _ = other.communicate(timeout=120)
  assert other.returncode == 1
  assert re.search(r"error: .* is in use by process \d+", text), text
  process.send_signal(signal.SIGTERM)
  text, _ = process.communicate(timeout=120)
  assert process.returncode == 0, text
  assert re.search(r"saved; go on with: python -m launch.train --config", text)


@pytest.mark.parametrize(
  ("words", "error"),
  [
    (
      ("compare", "--archs=gated_deltnet", "--workdir={tmp}"),
      "unknown architecture 'gated_deltnet': did you mean 'gated_deltanet'",
    ),
    (
      ("compare", "--platform=tpu", "--workdir={tmp}"),
      "--platform=tpu: no TPU was found",
    ),
    (
      ("train", "--config=configs/mamba2.py:tiny", "--config.model.dmi=3"),
      "no field --config.model.dmi: did you mean 'config.model.dim'",
    ),
    (("compare", "--lrs=1e-3,abc"), "--lrs=1e-3,abc: name rates as in"),
    (("bench", "--out={tmp}/none/bench.json"), "none/bench.json: No such file"),
    (("evaluate", "--wokdir={tmp}"), "Unknown command line flag 'wokdir'"),
  ],
)
def test_a_mistake_is_one_line(words, error, tmp_path):
  code, text = run(*(word.format(tmp=tmp_path) for word in words))
  assert code == 1
  lines = [line for line in text.splitlines() if line.startswith("error: ")]
  assert len(lines) == 1 and error in lines[0], text
  assert "Traceback" not in text


@pytest.mark.parametrize(
  ("text", "number"),
  [("500K", 500_000), ("1.5m", 1_500_000), (".5G", 500_000_000), (" 7 ", 7)],
)
def test_numbers(text, number):
  flag = types.SimpleNamespace(name="tokens", value=text)
  assert launch_command.number(flag) == number


@pytest.mark.parametrize("text", ["half", "1.2.3K", "", "-3", "5KB"])
def test_what_is_no_number(text):
  flag = types.SimpleNamespace(name="tokens", value=text)
  with pytest.raises(ValueError, match=f"--tokens={text} is not a number such"):
    launch_command.number(flag)


@pytest.mark.parametrize(
  ("words", "error"),
  [
    (
      ("configs/mamba2.py:tiny", "--config.train.rl=3"),
      "no field .*train.rl: ",
    ),
    (("configs/mamba2.py:tin",), "unknown size 'tin'"),
    (("mamba2",), "unknown architecture 'mamba2': there is no mamba2"),
    (
      ("configs/attention.py", "--config.model.mixers.attention.window=8"),
      "only a field that configs/attention.py sets can be a flag",
    ),
    (
      ("configs/attention.py", "--config.model.mixers.mamba2.head=8"),
      "only a field that configs/attention.py sets",
    ),
  ],
)
@pytest.mark.parametrize("way", ["--config {}", "--config={}", "-config {}"])
def test_a_wrong_config_is_refused(words, error, way, monkeypatch):
  monkeypatch.chdir(ROOT)
  path, *fields = words
  with pytest.raises(ValueError, match=error):
    launch_command.check_config(["train", *way.format(path).split(), *fields])


def test_a_config_of_another_folder_says_where_to_run(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=f"run from {ROOT}"):
    launch_command.check_config(["train", "--config=configs/mamba2.py"])


@pytest.mark.parametrize(
  ("body", "code", "said"),
  [
    ("os.kill(os.getpid(), 2); time.sleep(9)", 130, "interrupted\n"),
    ("sys.stdout.write('x' * 99999)", 141, ""),
    ("raise RuntimeError('RESOURCE_EXHAUSTED: 9 GB')", 1, "error: out of mem"),
    ("raise OSError(2, 'No such file', 'x')", 1, "error: .*No such file: 'x'"),
  ],
)
def test_an_end_is_one_line(body, code, said, tmp_path):
  """Whatever ends a command; here nobody reads what it prints."""
  (tmp_path / "ends.py").write_text(
    "import os, sys, time\nfrom launch import command\n"
    f"def main(argv):\n  {body}\ncommand.run(main)"
  )
  read, write = os.pipe()
  os.close(read)
  done = subprocess.run(
    [sys.executable, tmp_path / "ends.py"],
    env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    stdout=write,
    stderr=subprocess.PIPE,
    text=True,
    timeout=240,
  )
  os.close(write)
  start, *lines = done.stderr.splitlines(keepends=True)
  assert start.endswith(": starting\n") and done.returncode == code, done.stderr
  assert len(lines) == bool(said) and re.match(said, "".join(lines))
