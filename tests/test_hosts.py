"""Several processes that train one run: what one process would have trained,
stopped, killed and resumed by as many others; and what is refused."""

import json
import os
import re
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from models import ROOT, config

from train import checkpoint, hosts, metrics, sites
from train.step import Step

pytestmark = pytest.mark.xdist_group("hosts")

# launch.train, which one signal strikes within a step; of several processes one
# alone may look for damage, since it moves what it finds
TRAIN = """
import os, signal, sys
from launch import command, train
from train import checkpoint, hosts
blow, at = sys.argv.pop(1), int(sys.argv.pop(1))
stepped, made = hosts.Stop.stepped, 0

def struck(self):
  global made
  made += 1
  if made == at:
    os.kill(os.getpid(), getattr(signal, blow))
  stepped(self)

damage = checkpoint.damage

def looked(folder):
  assert hosts.first()
  return damage(folder)

hosts.Stop.stepped, checkpoint.damage = struck, looked
command.run(train.main, prepared=False)
"""


def free_port() -> int:
  with socket.create_server(("localhost", 0)) as server:
    return server.getsockname()[1]


def process(code, *words, devices=1, **environment):
  env = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(devices),
    # the compiler is what these tests wait for
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    **environment,
  }
  return subprocess.Popen(
    [sys.executable, "-c", code, *map(str, words)],
    cwd=ROOT,
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def ended(*processes):
  """(exit code, stdout, stderr) of each, without what gloo says."""
  try:
    told = [(p, *p.communicate(timeout=120)) for p in processes]
  finally:
    for p in processes:
      p.kill()
  return [
    (p.returncode, re.sub(r"(?m)^\[Gloo\].*\n", "", out), err)
    for p, out, err in told
  ]


def of_two(i, address, code, *words):
  """Process i of two of one device each."""
  return process(
    code,
    *words,
    JAX_COORDINATOR_ADDRESS=address,
    JAX_NUM_PROCESSES="2",
    JAX_PROCESS_ID=str(i),
  )


def two(code, *each):
  """Both, with the words of each."""
  address = f"localhost:{free_port()}"
  return [of_two(i, address, code, *words) for i, words in enumerate(each)]


@pytest.fixture(scope="module")
def training(tmp_path_factory):
  """path -> the words of launch.train that trains there."""
  folder = tmp_path_factory.mktemp("text")
  rng = np.random.default_rng(0)
  words = [b"alpha ", b"beta ", b"gamma\n", b"delta. "]
  for split, n in (("train", 900), ("valid", 100), ("test", 100)):
    picked = rng.integers(0, len(words), n)
    (folder / f"{split}.txt").write_bytes(b"".join(words[i] for i in picked))
  train = "steps=12 warmup=2 batch=4 eval_every=6 save_every=3 log_every=1"
  return lambda path, *more: (
    "--config=mingru:tiny",
    f"--config.data.name=text:{folder}",
    *(f"--config.train.{field}" for field in f"{train} eval_bytes=300".split()),
    f"--workdir={path}",
    *more,
  )


NEVER = "SIGKILL", 0


@pytest.fixture(scope="module")
def alone(training, tmp_path_factory):
  """The run of one process on two devices, never stopped; of two, too."""
  one, both = (tmp_path_factory.mktemp("runs") / name for name in "12")
  words = *NEVER, *training(both, "--distributed")
  found = ended(
    process(TRAIN, *NEVER, *training(one), devices=2), *two(TRAIN, words, words)
  )
  assert [code for code, *_ in found] == [0, 0, 0], found
  return one, both, found


def numbers(path):
  """metrics.jsonl without its clock."""
  return [
    {k: v for k, v in line.items() if k != "seconds"}
    for line in metrics.read(path)
  ]


def last(path):
  """The bits of all that was saved last."""
  c = config("mingru")
  c.model.vocab.size = 256
  state = jax.eval_shape(lambda: Step(c).init(0, 1e-3))
  folder = path / "checkpoints" / str(max(checkpoint.steps(path)))
  assert not checkpoint.damage(folder)
  saved = checkpoint.label(folder)
  state = checkpoint.read(folder, state, part=True)
  return saved["arrays"], [x.tobytes() for x in jax.tree.leaves(state)]


def test_two_processes_are_one_to_the_last_bit(alone):
  one, both, _ = alone
  assert {"loss", "grad_norm"} < numbers(one)[0].keys()
  assert numbers(both) == numbers(one)
  assert checkpoint.steps(both) == checkpoint.steps(one) == [9, 12]
  assert last(both) == last(one)


def test_the_first_process_writes_and_speaks(alone):
  one, both, (_, (_, out, err), (_, silent, warned)) = alone
  assert re.fullmatch(r".*: step 12 of 12, valid nats .*\n", out) and not silent
  assert "compiling" in err and "compiling" not in warned
  assert "scoring" in err and "scoring" not in warned
  wanted = sorted(f.name for f in one.iterdir() if "tfevents" not in f.name)
  found = [f.name for f in both.iterdir() if "tfevents" not in f.name]
  assert sorted(found) == wanted
  assert len(list(both.glob("events*"))) == 1


def test_stopped_killed_and_resumed_by_others_is_never_stopped(
  alone, training, tmp_path
):
  one, *_ = alone
  path = tmp_path / "run"
  words = training(path, "--distributed")
  found = ended(*two(TRAIN, (*NEVER, *words), ("SIGTERM", 4, *words)))
  assert [code for code, *_ in found] == [0, 0], found
  assert "step 5 of 12, saved; go on with: " in found[0][1], found
  assert "stopping after this step" not in found[0][2]
  assert checkpoint.steps(path) == [3, 5]
  (path / "checkpoints/5/seal").unlink()
  words = "SIGKILL", 5, *words  # within step 8
  found = ended(*two(TRAIN, words, words))
  assert [code for code, *_ in found] == [-9, -9], found
  assert ["going on from step 3" in err for *_, err in found] == [True, False]
  assert [f.name for f in (path / "damaged").iterdir()] == ["5.0"]
  assert checkpoint.steps(path)[-1] in (3, 6)
  (found,) = ended(process(TRAIN, *NEVER, *training(path), devices=2))
  assert found[0] == 0, found
  assert numbers(path) == numbers(one)
  assert last(path) == last(one)


# what is refused, and what is asked once, in two processes
SAID = """
import json, os, resource, sys
import numpy as np
from train import hosts, platform, workdir
path, trained, i = sys.argv[1], sys.argv[2], int(sys.argv[3])
platform.setup("cpu", distributed=True)
import jax
from arch import arrays
from train import checkpoint, data, loop, models
import configs
workdir.LAG = 0.5

def refused(call, *args, **fields):
  try:
    call(*args, **fields)
  except (ValueError, OSError) as error:
    return f"{type(error).__name__}: {error}"

def fails(*where):
  if i in where:
    raise FileNotFoundError(f"no {i}")
  return i

caught = open("/proc/self/status").read().split("SigCgt:")[1].split()[0]
said = {"sigterm": int(caught, 16) >> 14 & 1}
source = data.load({"name": f"text:{path}"})
cfg = configs.load("mingru", "tiny")
cfg = loop.resolve(cfg, source)
cfg.train.lr = (i + 1) / 100
run = path + "/run"
said["config"] = refused(loop.run, cfg, run, source)
cfg.train.lr, source.hash = .01, f"abc{i}"
said["data"] = refused(loop.run, cfg, run, source)
said["together"] = [
  hosts.together(fails),
  refused(hosts.together, lambda: fails(1)),
  refused(hosts.together, lambda: fails(0, 1)),
]
said["decided"] = [
  hosts.decided(fails),
  refused(hosts.decided, lambda: fails(0)),
  refused(hosts.decided, lambda: fails(1)),
]
said["disk"] = refused(workdir.Workdir, f"{path}/{i}")
with workdir.Workdir(run):
  said["held"] = refused(workdir.Workdir, run)
x = hosts.Sharding().batch({"tokens": np.arange(8).reshape(4, 2)})["tokens"]
teacher = arrays.split(models.load(trained))[1]
teacher = jax.device_put(teacher, jax.NamedSharding(x.sharding.mesh, jax.P()))
said["whole"] = [a.is_fully_replicated for a in jax.tree.leaves(teacher)]
said["fetch"] = [x.is_fully_addressable, hosts.fetch(x).tolist()]
noise = np.random.default_rng(0).normal(size=(4, 50_000))
saved = checkpoint.Checkpoints(run)
state = hosts.Sharding().batch({"tokens": noise})
if i == 0:
  _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
saved.save(1, state)
if i == 0:
  said["full"] = refused(saved.wait)
print(json.dumps(said), flush=True)
os._exit(0)  # the second one's save waits for the first's
"""


@pytest.fixture(scope="module")
def said(training, alone):
  """By each of two processes."""
  folder = re.search("text:(.*)", training("")[1])[1]
  found = ended(*two(SAID, *((folder, alone[0], i) for i in range(2))))
  assert [code for code, *_ in found] == [0, 0], found
  return [json.loads(out) for _, out, _ in found]


@pytest.mark.parametrize("what", ["config", "data"])
def test_different_processes_are_refused_with_both_hashes(said, what):
  one, other = (process[what] for process in said)
  assert one == other
  assert re.fullmatch(
    rf"ValueError: process 1 has another {what} than process 0: hash "
    r"([0-9a-f]{12}), not (?!\1)[0-9a-f]{12}; give all of them the same",
    one,
  ), one


def test_all_learn_what_went_wrong_in_one(said):
  first, second = (process["together"] for process in said)
  assert first[:2] == [0, "OSError: process 1: no 1"]
  assert second[:2] == [1, "FileNotFoundError: no 1"]
  assert first[2].endswith(": no 0") and second[2].endswith(": no 1")


def test_the_first_decides(said):
  first, second = (process["decided"] for process in said)
  assert first == [0, "FileNotFoundError: no 0", None]
  assert second == [0, "OSError: no 0", None]


def test_a_folder_that_is_held_or_on_another_disk_is_refused(said):
  for process in said:
    assert "is in use by process" in process["held"]
    assert "1/lock on " in process["disk"]
    assert "name a --workdir on a disk that all hosts see" in process["disk"]


def test_a_signal_before_the_first_step_ends_a_process(said):
  assert not any(process["sigterm"] for process in said)


def test_what_is_on_the_devices_of_all_is_fetched(said):
  for process in said:
    assert process["fetch"] == [False, np.arange(8).reshape(4, 2).tolist()]


def test_a_save_that_fails_in_one_is_told_there_at_once(said):
  assert "run/checkpoints/1: File too large; raise the limit" in said[0]["full"]


def test_a_teacher_is_put_on_the_devices_of_all(said):
  for process in said:
    assert process["whole"] and all(process["whole"])


def test_who_does_not_come_is_waited_for_a_limited_time():
  code = (
    "import sys; from train import hosts; hosts.LIMIT = 1\n"
    "try: hosts.start()\nexcept ValueError as error: sys.exit(str(error))"
  )
  places = [f"localhost:{free_port()}" for _ in range(2)]
  *found, (status, _, err) = ended(
    *(of_two(i, at, code) for i, at in enumerate(places)), process(code)
  )
  assert status == 1 and "JAX finds no cluster (coordinator_addr" in err, err
  for (status, out, err), at in zip(found, places, strict=True):
    assert (status, out) == (1, "") and err.count("\n") == 1, err
    assert f"within 1 s to the coordinator, process 0 at {at}: see" in err


def test_a_process_without_a_device_is_refused(monkeypatch):
  monkeypatch.setattr(hosts, "count", 2)
  with pytest.raises(ValueError, match="leaves 1 of 2 processes without a"):
    hosts.Sharding.fitting(1, 3)


TOLD = {
  "JAX_COORDINATOR_ADDRESS": "localhost:1234",
  "JAX_NUM_PROCESSES": "2",
  "JAX_PROCESS_ID": "1",
}


@pytest.mark.parametrize(
  ("environment", "error"),
  [
    ({"JAX_COORDINATOR_ADDRESS": ""}, "JAX_COORDINATOR_ADDRESS=, JAX_NUM"),
    (
      {"JAX_COORDINATOR_ADDRESS": "localhost"},
      "=localhost, .*: give HOST:PORT",
    ),
    ({"JAX_NUM_PROCESSES": ""}, "JAX_NUM_PROCESSES=, JAX_PROCESS_ID=1: give"),
    ({"JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID=2: give HOST:PORT"),
    ({"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID=-1: give HOST:PORT"),
    ({"TPU_PROCESS_ADDRESSES": "local"}, "this is one host .* leave it out"),
    ({sites.KAGGLE: "Batch"}, r"this is one host \(Kaggle, batch\)"),
    ({sites.COLAB: "1"}, r"this is one host \(Colab, 1\)"),
  ],
)
def test_a_start_that_cannot_be_is_refused(environment, error, monkeypatch):
  for name, value in (TOLD | environment).items():
    monkeypatch.setenv(name, value)
  with pytest.raises(ValueError, match=error) as e:
    hosts.start()
  assert "\n" not in str(e.value)


def test_a_port_that_is_taken_is_refused(monkeypatch):
  with socket.create_server(("", 0)) as server:
    address = f"localhost:{server.getsockname()[1]}"
    for name, value in (TOLD | {"JAX_PROCESS_ID": "0"}).items():
      monkeypatch.setenv(name, value)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", address)
    with pytest.raises(ValueError, match=f"{address}: process 0 cannot listen"):
      hosts.start()
