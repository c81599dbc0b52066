"""metrics.jsonl and TensorBoard: whole lines, cut back where a run goes on."""

import json
import os
import resource
import struct
import time

import jax.numpy as jnp
import numpy as np
import pytest

from train.metrics import Metrics, read


def events(path):
  """Every event of a folder, oldest file first, with its CRCs checked."""
  from tensorboardX.proto import event_pb2
  from tensorboardX.record_writer import masked_crc32c

  found = []
  for file in sorted(path.glob("events.out.tfevents.*")):
    data = file.read_bytes()
    while data:
      (size,) = struct.unpack("<Q", data[:8])
      head, body = struct.unpack("<I", data[8:12]), data[12 : 12 + size]
      tail = struct.unpack("<I", data[12 + size : 16 + size])
      assert head == (masked_crc32c(data[:8]),)
      assert tail == (masked_crc32c(body),)
      found.append(event_pb2.Event.FromString(body))
      data = data[16 + size :]
  return found


def test_a_line_is_an_object_and_numbers_stay_exact(tmp_path):
  m = Metrics(tmp_path)
  m.write(1, loss=0.1 + 0.2, tokens=10**15)
  m.write(2, loss=float("nan"), bits_per_byte=float("inf"), norm=-float("inf"))
  text = (tmp_path / "metrics.jsonl").read_text()  # before close: no buffer
  m.close()

  def refuse(name):
    raise AssertionError(f"{name} is not JSON")

  lines = [json.loads(t, parse_constant=refuse) for t in text.splitlines()]
  assert lines == [
    {"step": 1, "loss": 0.1 + 0.2, "tokens": 10**15},
    {"step": 2, "loss": None, "bits_per_byte": None, "norm": None},
  ]
  assert read(tmp_path) == lines


@pytest.mark.parametrize(
  "value", [jnp.float32(1), np.float32(1), np.ones(2), "1", None]
)
def test_an_array_is_refused_before_anything_is_written(tmp_path, value):
  m = Metrics(tmp_path)
  with pytest.raises(TypeError, match="loss is a .*device_get"):
    m.write(1, loss=value)
  m.close()
  assert read(tmp_path) == []


@pytest.mark.parametrize(
  "restored, steps", [(None, []), (0, [0]), (3, [0, 1, 2, 3, 3]), (9, None)]
)
def test_resuming_cuts_back_to_the_restored_step(tmp_path, restored, steps):
  m = Metrics(tmp_path)
  for step in (0, 1, 2, 3, 3, 4):
    m.write(step, loss=step / 7)
  m.close()
  with open(tmp_path / "metrics.jsonl", "a") as f:
    f.write('{"step": 2, "loss": 0.')  # kill -9 in the middle of a write
  m = Metrics(tmp_path, restored)
  m.write(10, loss=1.0)
  m.close()
  steps = [0, 1, 2, 3, 3, 4] if steps is None else steps
  wanted = [{"step": s, "loss": s / 7} for s in steps]
  assert read(tmp_path) == [*wanted, {"step": 10, "loss": 1.0}]


def test_tensorboard_sees_the_same_and_forgets_what_was_cut(tmp_path):
  m = Metrics(tmp_path)
  m.write(1, loss=0.5, norm=2.0)
  m.write(2, loss=float("nan"))
  first, *old = events(tmp_path)  # before close: no buffer
  m.close()
  assert first.file_version == "brain.Event:2"
  start = old[0].session_log.START
  assert [e.session_log.status for e in old] == [start, 0, 0]
  scalars = {
    (e.step, v.tag): v.simple_value for e in old for v in e.summary.value
  }
  assert scalars[1, "loss"] == 0.5 and scalars[1, "norm"] == 2.0
  assert np.isnan(scalars[2, "loss"])
  assert time.time() - 60 < old[1].wall_time <= time.time()

  m = Metrics(tmp_path, restored=1)
  m.write(2, loss=0.25)
  m.close()
  new = events(tmp_path)
  purge = [e.step for e in new if e.session_log.status == start]
  assert purge == [0, 2]
  assert new[-1].step == 2 and new[-1].summary.value[0].simple_value == 0.25


def test_a_broken_line_inside_is_named(tmp_path):
  text = '{"step": 1}\n{"step": \n{"step": 3}\n'
  (tmp_path / "metrics.jsonl").write_text(text)
  with pytest.raises(ValueError, match="metrics.jsonl, line 2"):
    Metrics(tmp_path)
  assert (tmp_path / "metrics.jsonl").read_text() == text


@pytest.mark.parametrize("room", [0, 11])
def test_a_full_disk_says_so_and_leaves_whole_lines(tmp_path, room):
  m = Metrics(tmp_path)
  m.write(1, loss=1.0)
  size = os.path.getsize(tmp_path / "metrics.jsonl")
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, hard))
  try:
    with pytest.raises(OSError, match="metrics.jsonl: .*ulimit") as e:
      m.write(2, loss=2.0)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert "\n" not in str(e.value)
  m.write(3, loss=3.0)
  m.close()
  assert [line["step"] for line in read(tmp_path)] == [1, 3]
  events(tmp_path)


def test_a_line_costs_little(tmp_path):
  m = Metrics(tmp_path)
  m.write(0, loss=1.0)
  times = []
  for step in range(1, 300):
    start = time.perf_counter()
    m.write(step, loss=1.0, grad_norm=0.5, rate=3e-4, tokens_per_second=1e4)
    times.append(time.perf_counter() - start)
  m.close()
  assert min(times) < 2e-3
