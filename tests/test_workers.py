"""Runs on several chips at once, and what is given to whom."""

import json
import signal

import numpy as np
import pytest

import configs
from train import compare, platform, schedule, workers
from train.schedule import Job, Took


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("text")
  rng = np.random.default_rng(0)
  for split, n in (("train", 3000), ("valid", 300), ("test", 300)):
    letters = rng.choice(list(b"abcd \n"), n)
    (path / f"{split}.txt").write_bytes(bytes(letters.tolist()))
  return path


def comparison(
  path, text, chips, archs=("mingru", "shortconv"), say=None, **fields
):
  plan = compare.Plan(
    **{
      "params": None,
      "tokens": 400,
      "length": 13,
      "batch": 2,
      "data": f"text:{text}",
      "seeds": 1,
      "lrs": (1e-3, 1e-2),
      "eval_bytes": 100,
      **fields,
    }
  )
  arms = {name: configs.load(name, "tiny") for name in archs}
  return compare.Comparison(
    arms, plan, path, say=say or print, chips=workers.Chips("cpu", chips)
  )


TIMES = ("seconds", "tokens_per_second", "compile_seconds", "curve")


def told(results):
  """All that is said of runs but for how long they took."""
  runs = [
    {k: v for k, v in run.items() if k not in TIMES}
    | {"losses": run["curve"]["loss"]}
    for run in results["runs"]
  ]
  return json.dumps(runs), results["arms"]


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
  path = tmp_path_factory.mktemp("alone")
  return told(comparison(path, folder, 1).run())


def test_two_chips_are_one_and_survive_the_kill_of_a_worker(
  folder, alone, tmp_path, monkeypatch
):
  said, pools = [], []

  def say(line):
    said.append(line)
    if "tune seed 0" in line and "nats" in line and len(pools) == 1:
      busy = [w for w in pools[0].workers if w.job]
      busy[-1].process.kill()
      pools.append("killed")

  init = workers.Pool.__init__

  def kept(self, *args):
    pools.append(self)
    init(self, *args)

  monkeypatch.setattr(workers.Pool, "__init__", kept)
  results = comparison(tmp_path, folder, 2, say=say).run()
  assert told(results) == alone
  assert "killed" in pools
  assert any("ended (SIGKILL): it starts again" in line for line in said)
  assert results["machine"]["devices"] == results["machine"]["cores"] == 1
  assert [w.process.poll() is not None for w in pools[0].workers] == [True] * 2

  # nothing is left to train: no worker starts, and the results are the same
  again = comparison(tmp_path, folder, 2).run()
  assert not pools[-1].workers
  for results_ in (results, again):
    del results_["created"]
  assert again == results


def test_a_signal_stops_all_and_the_same_goes_on(folder, alone, tmp_path):
  def say(line):
    if "tune seed 0" in line and "nats" in line:
      made.signals.name = "SIGTERM"

  made = comparison(tmp_path, folder, 2, say=say)
  assert made.run() is None
  done = list(tmp_path.glob("runs/*/*/result.json"))
  assert 0 < len(done) < 6
  assert told(comparison(tmp_path, folder, 2).run()) == alone


def test_what_a_worker_refuses_is_said_once(folder, tmp_path):
  made = comparison(tmp_path, folder, 2, ("mingru",), length=9999)
  with pytest.raises(ValueError, match="less than one window of length=9999"):
    made.run()


def test_a_worker_that_always_dies_is_given_up(folder, tmp_path, monkeypatch):
  monkeypatch.setattr(workers.sys, "executable", "/bin/false")
  said = []
  made = comparison(tmp_path, folder, 2, ("mingru",), say=said.append)
  with pytest.raises(
    ValueError, match=r"ended \(exit code 1\), the third time"
  ):
    made.run()


def test_more_chips_than_runs_stay_idle():
  said = []

  class Fake:
    chips, signals, say = workers.Chips("cpu", 8), None, said.append

  assert workers.Pool(Fake, 3).at_once == 3
  assert said == ["8 chips, but at most 3 runs at a time: 5 stay idle"]


def test_a_process_sees_its_own_chip(monkeypatch):
  tpu = [workers.environment("tpu", i) for i in range(8)]
  assert [own["TPU_VISIBLE_CHIPS"] for own in tpu] == list(map(str, range(8)))
  assert len({own["TPU_PROCESS_PORT"] for own in tpu}) == 8
  assert {own["TPU_PROCESS_BOUNDS"] for own in tpu} == {"1,1,1"}
  monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
  assert workers.environment("gpu", 1) == {"CUDA_VISIBLE_DEVICES": "1"}
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
  assert workers.environment("gpu", 1) == {"CUDA_VISIBLE_DEVICES": "7"}


def test_chips_that_are_not_there_are_refused(monkeypatch):
  monkeypatch.setattr(platform, "core_count", lambda: 2)
  with pytest.raises(ValueError, match="--chips=3, but this machine has 2 cor"):
    workers.chips("cpu", 3)
  files = {"tpu": [], "gpu": ["/dev/nvidia0"]}
  monkeypatch.setattr(platform, "device_files", files.get)
  with pytest.raises(ValueError, match="--chips=2, but this machine has 1 GPU"):
    workers.chips(None, 2)
  assert workers.chips(None, 1) == ("gpu", 1)
  files["tpu"] = ["/dev/vfio/0", "/dev/vfio/vfio"]
  assert workers.chips(None, 1) == ("gpu", 1)  # which a host has lent
  monkeypatch.setattr(platform, "tpu_chips", lambda: ["a", "b", "c", "d"])
  assert workers.chips(None, 4) == ("tpu", 4)


def test_workers_end_where_a_run_is_refused():
  ended = []

  class Ending(Hands):
    def __exit__(self, *_):
      ended.append(True)

  def refused(*_):
    raise ValueError("of another config")

  with pytest.raises(ValueError, match="of another config"):
    schedule.finish(searches("a"), refused, Ending({}), print, print)
  assert ended


class Hands:
  """That train several jobs at once, the last one given first."""

  at_once = 2

  def __init__(self, there, stop=99):
    self.there, self.stop, self.jobs, self.trained = there, stop, [], []

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass

  busy = property(lambda self: bool(self.jobs))
  free = property(lambda self: len(self.jobs) < self.at_once)

  def next(self, jobs):
    return 0

  def start(self, job):
    self.jobs.append(job)

  def wait(self):
    job = self.jobs.pop()
    self.trained.append(job)
    self.there.update({(*job[:2], one): len(self.there) for one in job.group})
    return None if len(self.trained) == self.stop else (job, Took(1, 0))


def searches(names):
  def one(name):
    tuned = yield "tune", [1, 2, 3]
    final = yield "final", [max(tuned)]
    return tuned + final

  return {name: one(name) for name in names}


def finished(hands, begun=None):
  def parted(name, phase, wanted):
    keys = {job: (name, phase, job) for job in wanted}
    done = {j: hands.there[k] for j, k in keys.items() if k in hands.there}
    return done, [[job] for job in wanted if job not in done]

  begun = [] if begun is None else begun
  return schedule.finish(
    searches("ab"), parted, hands, begun.append, lambda *_: None
  )


def test_seeds_come_after_all_of_an_arms_rates_and_before_other_arms():
  hands, begun = Hands({}), []
  hands.at_once = 1
  found = finished(hands, begun)
  assert begun == hands.trained
  assert [job[:2] for job in begun] == [
    *[("a", "tune")] * 3,
    ("a", "final"),
    *[("b", "tune")] * 3,
    ("b", "final"),
  ]
  assert found == {"a": [0, 1, 2, 3], "b": [4, 5, 6, 7]}


def test_what_is_there_is_not_trained_again():
  there = {("a", "tune", i): 0 for i in (1, 3)} | {("b", "tune", 2): 0}
  hands = Hands(there)
  found = finished(hands)
  assert len(hands.trained) == 8 - 3 and len(found["a"]) == 4
  assert len({*hands.trained}) == 5
  assert finished(Hands(hands.there, stop=1)) == found  # nothing is left
  assert finished(Hands({}, stop=2)) is None


def test_a_worker_keeps_its_arm():
  class Free:
    def __init__(self, arm, job=None):
      self.arm, self.job, self.given = arm, job, None

    def give(self, job):
      self.given = job

  pool = object.__new__(workers.Pool)
  jobs = [Job(arm, "tune", ((0, 1),)) for arm in "aabbcc"]
  pool.workers = [Free("a", jobs[0]), Free("b")]
  assert pool.next(jobs) == 2  # of b, as the one that is idle
  pool.start(jobs[2])
  assert pool.workers[1].given == jobs[2]
  pool.workers = [Free("a", jobs[0]), Free("b", jobs[2]), Free(None)]
  assert pool.next(jobs) == 4  # of c, which nobody has compiled
  pool.workers = [Free("a"), Free("x"), Free(None)]
  pool.start(jobs[4])
  assert pool.workers[2].given == jobs[4]


def test_the_parents_death_is_obeyed(folder, tmp_path):
  """A worker whose parent is gone ends by itself."""
  made = comparison(tmp_path, folder, 1, ("mingru",))
  made.planned = {}
  pool = workers.Pool(made, 1)
  pool.launch()
  (worker,) = pool.workers
  worker.connection.close()
  assert worker.process.wait(30) in (0, -signal.SIGTERM)
