"""Ctrl-C and SIGTERM: answered while C code runs, which Python waits for."""

import subprocess
import sys
import time

import pytest
from models import ROOT

from train import signals

# C code that lets other threads run and no handler, as the compiler does
CODE = """
import hashlib, sys
from train import signals
signals.watch()
def busy():
  print("busy", flush=True)
  hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
if sys.argv[1] == "loop":
  with signals.Signals() as asked:
    busy()
else:
  busy()
"""


def busy(place):
  process = subprocess.Popen(
    [sys.executable, "-c", CODE, place],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "busy\n"
  return process


@pytest.mark.parametrize("place", ["loop", "elsewhere"])
def test_ctrl_c_is_answered_at_once(place):
  with busy(place) as process:
    process.send_signal(2)
    said = process.stderr.readline()
    if place == "loop":
      assert said == "stopping after this step; again to stop now\n"
      process.send_signal(2)
      said = process.stderr.readline()
    assert said == "interrupted\n" and process.wait(10) == 130


@pytest.mark.parametrize("place", ["loop", "elsewhere"])
def test_ctrl_c_ends_what_nobody_listens_to(place):
  with busy(place) as process:
    process.stderr.close()  # as tee is by the same Ctrl-C
    for _ in range(1 + (place == "loop")):
      process.send_signal(2)
      time.sleep(0.3)
    assert process.wait(10) == 130


@pytest.mark.parametrize("number", signals.BOTH)
def test_a_loop_is_asked_to_stop(number, capfd):
  before = signals.signal.getsignal(number)
  with signals.Signals() as asked:
    signals.signal.raise_signal(number)
    assert asked.name == number.name
    assert signals.signal.getsignal(number) == before
  assert capfd.readouterr().err.startswith("stopping after this step")
  assert not signals.entered


def test_a_time_that_is_up_is_said_once(capfd):
  assert signals.Signals(3600).name == signals.Signals().name == ""
  asked = signals.Signals(-1)
  assert asked.name == asked.name == "until"
  assert capfd.readouterr().err.count("time is up") == 1
  asked = signals.Signals(-1)
  asked.name = "SIGTERM"  # it came first
  assert asked.name == "SIGTERM"
