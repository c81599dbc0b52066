"""A run's folder: one writer, one config, and errors that say what to do."""

import copy
import errno
import math
import os
import signal
import socket
import subprocess
import sys

import ml_collections
import models
import pytest

from train import evaluate, generate, workdir

CONFIG = {
  "model": {"dim": 24, "pattern": ("a", {"mixer": "b"}), "channels": {}},
  "train": {"lr": 3e-3, "steps": 10, "keep": 2},
}


def changed(path, value):
  config = copy.deepcopy(CONFIG)
  *outer, last = path.split(".")
  inner = config
  for part in outer:
    inner = inner[part]
  inner[last] = value
  return config


def test_the_second_process_is_refused_and_told_who_holds_it(tmp_path):
  code = (
    "import sys, time; from train import workdir\n"
    "with workdir.Workdir(sys.argv[1]): print('in', flush=True); time.sleep(60)"
  )
  command = [sys.executable, "-c", code, tmp_path / "run"]
  with subprocess.Popen(
    command, stdout=subprocess.PIPE, cwd=models.ROOT
  ) as holder:
    assert holder.stdout.readline() == b"in\n"
    with pytest.raises(ValueError, match=f"process {holder.pid} on .*") as e:
      workdir.Workdir(tmp_path / "run")
    assert "\n" not in str(e.value)
    holder.send_signal(signal.SIGKILL)
  workdir.Workdir(tmp_path / "run").close()


def test_a_folder_is_free_once_closed_and_its_lock_names_the_new_holder(
  tmp_path,
):
  with workdir.Workdir(tmp_path):
    with pytest.raises(ValueError, match=f"process {os.getpid()} on"):
      workdir.Workdir(tmp_path)
  (tmp_path / "lock").write_text(f"process 1 on {'x' * 99}")
  with workdir.Workdir(tmp_path):
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    assert (tmp_path / "lock").read_text() == holder


def test_the_config_comes_back_hashable(tmp_path):
  with workdir.Workdir(tmp_path) as w:
    assert not w.record(ml_collections.ConfigDict(CONFIG), "abc")
    assert w.record(CONFIG, "abc")
  saved = workdir.read(tmp_path)
  assert saved == {"format": 1, "config": CONFIG, "data": "abc"}
  hash(saved["config"]["model"]["pattern"][:1])


KEPT = ("checkpoints/3/seal", "damaged/3.0/seal", "result.json")


@pytest.mark.parametrize(
  "kept", [None, *KEPT, *(f"runs/a/b/{k}" for k in KEPT)]
)
def test_a_config_is_replaced_until_something_was_saved(tmp_path, kept):
  if kept:
    (tmp_path / kept).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / kept).touch()
  other = changed("model.dim", 32)
  with workdir.Workdir(tmp_path) as w:
    w.record(CONFIG, "abc")
    if kept:
      with pytest.raises(ValueError, match="dim: saved 24, given 32"):
        w.record(other, "abd")
    else:
      assert not w.record(other, "abd")
  given, data = (CONFIG, "abc") if kept else (other, "abd")
  assert workdir.read(tmp_path) == {"format": 1, "config": given, "data": data}


def test_a_comparison_is_no_run_and_a_run_no_comparison(tmp_path):
  plan = {"params": 500, "tokens": 100, "lrs": [1e-3]}
  for first, second in ((plan, CONFIG), (CONFIG, plan)):
    path = tmp_path / f"{len(first)}"
    (path / "runs/a/b/checkpoints/3").mkdir(parents=True)
    with workdir.Workdir(path) as w:
      w.record(first)
      with pytest.raises(ValueError, match="holds a .*--workdir") as e:
        w.record(second)
    assert "\n" not in str(e.value)
  with pytest.raises(ValueError, match="a comparison, .*runs/ARM/RUN .*--keep"):
    workdir.of_run(tmp_path / "3")
  kept = tmp_path / "3/runs/a/final-seed1-lr0.1"
  for run in (kept, kept.with_name("tune-seed0-lr1"), kept.with_name("x")):
    (run / "checkpoints").mkdir(parents=True)
  (kept / "checkpoints/4").mkdir()
  with pytest.raises(ValueError, match=f"such as --workdir={kept}$"):
    workdir.of_run(tmp_path / "3")
  assert workdir.of_run(tmp_path / "2") == CONFIG
  with pytest.raises(ValueError, match="no folder"):
    workdir.of_run(tmp_path / "4")


@pytest.mark.parametrize(
  ("call", "error"),
  [
    (lambda run: evaluate.whole(run, context=-1), "--context=-1 must be at"),
    (lambda run: evaluate.whole(run, chunk=0), "--chunk=0 must be at least 1"),
    (lambda run: evaluate.whole(run), "holds a comparison"),
    (lambda run: next(generate.stream(run, b"")), "holds a comparison"),
    (
      lambda run: next(generate.stream(run, b"", temperature=math.nan)),
      "--temperature=nan must be",
    ),
    (lambda run: next(generate.stream(run, b"", top_p=2)), "--top_p=2 must be"),
  ],
)
def test_who_reads_a_run_says_what_is_wrong(tmp_path, call, error):
  with workdir.Workdir(tmp_path) as w:
    w.record({"params": 500})
  with pytest.raises(ValueError, match=error):
    call(tmp_path)


def test_a_file_that_cannot_be_written_is_refused_at_once(tmp_path):
  (tmp_path / "old.json").write_text("kept")
  for path in ("none/a.json", "."):
    with pytest.raises(OSError, match="cannot write"):
      workdir.check_writable(tmp_path / path)
  workdir.check_writable(tmp_path / "old.json")
  assert [f.read_text() for f in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize(
  "path, value, line",
  [
    ("model.dim", 32, "model.dim: saved 24, given 32"),
    ("train.lr", 1e-3, "train.lr: saved 0.003, given 0.001"),
    ("train.new", "x", "train.new: saved None, given 'x'"),
    ("model.channels", {"a": 1}, "model.channels.a: saved None, given 1"),
  ],
)
def test_another_config_is_refused_field_by_field(tmp_path, path, value, line):
  (tmp_path / "checkpoints/3").mkdir(parents=True)
  with workdir.Workdir(tmp_path) as w:
    w.record(CONFIG)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError) as e:
      w.record(changed(path, value))
    assert f"\n  {line}" in str(e.value)
    assert (tmp_path / "config.json").read_bytes() == before


def test_other_data_is_refused(tmp_path):
  (tmp_path / "checkpoints/3").mkdir(parents=True)
  with workdir.Workdir(tmp_path) as w:
    w.record(CONFIG, "abc")
    for data in ("abd", None):
      with pytest.raises(
        ValueError, match=f"data changed: .*abc, given {data}"
      ):
        w.record(CONFIG, data)


def test_another_run_is_refused_before_its_data_are_loaded(tmp_path):
  workdir.check(tmp_path / "none", CONFIG)
  with workdir.Workdir(tmp_path) as w:
    w.record(changed("model.vocab", {"size": 256}), "abc")
  given = changed("model.vocab", {"size": 0})
  more = {**given, "train": {**given["train"], "steps": 20}}
  workdir.check(tmp_path, more)
  (tmp_path / "checkpoints/3").mkdir(parents=True)
  workdir.check(tmp_path, given)
  with pytest.raises(ValueError) as e:
    workdir.check(tmp_path, more)
  first, line, advice = str(e.value).splitlines()
  assert line == "  train.steps: saved 10, given 20"
  assert f"--init={tmp_path}" in advice


def test_a_run_that_began_elsewhere_says_so(tmp_path):
  (tmp_path / "checkpoints/3").mkdir(parents=True)
  with workdir.Workdir(tmp_path) as w:
    w.record(CONFIG, init="a")
    assert workdir.read(tmp_path)["init"] == "a" and w.record(CONFIG, init="a")
    with pytest.raises(ValueError, match="--init: saved 'a', given 'b'"):
      w.record(CONFIG, init="b")


def test_data_of_another_name_are_not_told_by_hashes(tmp_path):
  (tmp_path / "checkpoints/3").mkdir(parents=True)
  with workdir.Workdir(tmp_path) as w:
    w.record({**CONFIG, "data": {"name": "stdlib"}}, "abc")
    with pytest.raises(ValueError, match="data.name: saved 'stdlib'") as e:
      w.record({**CONFIG, "data": {"name": "text:b"}}, "abd")
  assert "abc" not in str(e.value)


@pytest.mark.parametrize("path", workdir.FREE)
def test_when_to_look_may_change_and_is_kept(tmp_path, path):
  assert path in workdir.flat(models.config("attention").to_dict())
  with workdir.Workdir(tmp_path) as w:
    w.record(CONFIG)
    assert w.record(changed(path, 7))
  assert workdir.flat(workdir.read(tmp_path)["config"])[path] == 7


@pytest.mark.parametrize(
  "text, message",
  [
    (None, "holds no run"),
    ('{"format": 1, "con', "is not JSON"),
    ('{"format": 2}', "format 2, this version reads 1"),
    ("[]", "format None"),
  ],
)
def test_what_is_no_run_says_so(tmp_path, text, message):
  if text is not None:
    (tmp_path / "config.json").write_text(text)
  with pytest.raises(ValueError, match=message):
    workdir.read(tmp_path)


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
@pytest.mark.parametrize(
  "code, advice", [(errno.ENOSPC, "free some space"), (errno.EROFS, "writable")]
)
def test_a_disk_that_takes_no_file_loses_none(
  tmp_path, monkeypatch, call, code, advice
):
  with workdir.Workdir(tmp_path) as w:
    w.record(CONFIG)
    before = {f: f.read_bytes() for f in tmp_path.iterdir()}

    def fail(*args, **kwargs):
      raise OSError(code, os.strerror(code))

    place = workdir if call == "open" else os
    with monkeypatch.context() as m:
      m.setattr(place, call, fail, raising=False)
      with pytest.raises(OSError) as e:
        w.record(changed("train.keep", 5))
  assert str(tmp_path / "config.json") in str(e.value)
  assert advice in str(e.value)
  assert "\n" not in str(e.value)
  assert {f: f.read_bytes() for f in tmp_path.iterdir()} == before


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
  (tmp_path / "file").write_text("")
  for path in (tmp_path / "file", tmp_path / "file" / "run"):
    with pytest.raises(OSError, match="name a folder") as e:
      workdir.Workdir(path)
    assert str(path) in str(e.value)


def test_a_refused_lock_file_is_closed(tmp_path, monkeypatch):
  def fail(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with monkeypatch.context() as m:
    m.setattr(os, "write", fail)
    with pytest.raises(OSError, match="lock: .*free some space"):
      workdir.Workdir(tmp_path)
  workdir.Workdir(tmp_path).close()
