"""A comparison: plan, resume, divergence, tasks."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest

import configs
from train import (
  artefact,
  checkpoint,
  compare,
  loop,
  metrics,
  provenance,
  report,
  schedule,
)

# they share a comparison that was made once
pytestmark = pytest.mark.xdist_group("compare")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("text")
  rng = np.random.default_rng(0)
  for split, n in (("train", 3000), ("valid", 300), ("test", 300)):
    letters = rng.choice(list(b"abcd \n"), n)
    (path / f"{split}.txt").write_bytes(bytes(letters.tolist()))
  return path


def plan(folder, **fields):
  return compare.Plan(
    **{
      "params": None,
      "tokens": 100,
      "length": 13,
      "batch": 2,
      "data": f"text:{folder}",
      "seeds": 2,
      "lrs": (1e-3, 1e-2),
      "eval_bytes": 100,
      **fields,
    }
  )


def comparison(path, its_plan, archs=("attention", "mingru"), **fields):
  arms = {name: configs.load(name, "tiny") for name in archs}
  said = []
  return compare.Comparison(
    arms, its_plan, path, say=said.append, **fields
  ), said


def scores(results):
  return {
    (run["arch"], run["phase"], run["seed"], run["lr"]): run["bits_per_byte"]
    for run in results["runs"]
  }


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
  path = tmp_path_factory.mktemp("compare")
  made, said = comparison(path, plan(folder))
  return path, made.run(), said


def test_results_have_every_run_and_can_be_reported(finished, tmp_path):
  _, results, said = finished
  assert len(results["runs"]) == 2 * (2 + 2)
  finals = [run for run in results["runs"] if run["phase"] == "final"]
  assert {run["seed"] for run in finals} == {1, 2}
  assert {run["split"] for run in finals} == {"test"}
  for name, arm in results["arms"].items():
    rates = {run["lr"] for run in finals if run["arch"] == name}
    assert rates == {arm["lr"]} and arm["lr_at_edge"]
  assert any("edge of the grid" in line for line in said)
  report.write(results, tmp_path)
  saved = json.loads((tmp_path / "results.json").read_text())
  run = saved["runs"][0]
  assert run["config"]["model"]["vocab"]["size"] == 256
  assert saved["data"]["hash"] and saved["versions"]["jax"]


def test_a_file_of_an_arm_has_its_bytes_and_score(finished):
  pytest.importorskip("constriction")
  _, results, _ = finished
  for run in results["runs"]:
    if run["phase"] == "tune":
      assert run["exported"] is None
      continue
    own = run["exported"]
    assert 0.3 * run["params"] < own["bytes"] < 1.5 * run["params"]
    off = own["bits_per_byte"] - run["bits_per_byte"]
    assert own["bits"] == "8" and 0 < abs(off) < 0.05


@pytest.mark.parametrize("shape", [(), (3,)])
def test_without_a_coder_no_arm_has_a_file(shape, monkeypatch):
  def absent():
    raise ValueError("pip install constriction")

  monkeypatch.setattr(artefact, "coder", absent)
  files = compare.exported({"step": np.zeros(shape)}, {}, None)
  assert files == [None] * max(1, math.prod(shape))


def test_what_an_arm_says_of_itself_is_that_of_its_last_tenth():
  lines = [
    {"step": i, "loss_0": 1.0, "loss_1": 1.0, "load_0": i, "load_1": -i}
    for i in range(1, 21)
  ]
  assert compare.statistics(lines, "_1") == {"load": -19.5}
  assert compare.statistics(lines[:1], "_0") == {"load": 1}
  lost = [line | {"load_0": math.nan} for line in lines]  # it diverged
  assert compare.statistics(lost, "_0") == {}
  alone = [{"step": 1, "loss": 2.0, "grad_norm": 1.0, "dead": 0.5}]
  assert compare.statistics(alone, "") == {"dead": 0.5}


def test_the_best_rate_is_the_validation_slices(finished):
  _, results, _ = finished
  for name, arm in results["arms"].items():
    tuned = {
      run["lr"]: run["bits_per_byte"]
      for run in results["runs"]
      if run["arch"] == name and run["phase"] == "tune"
    }
    assert arm["lr"] == min(tuned, key=tuned.get)


def test_a_task_that_is_solved_is_tuned_by_its_loss():
  runs = [dict(accuracy=a, nats=n) for a, n in [(1, 0.2), (1, 0.1), (0.9, 0)]]
  assert compare.best(runs, "accuracy", "max") == runs[1]
  assert compare.best(runs, "accuracy", "min") == runs[2]


def test_an_interrupted_comparison_goes_on(
  finished, folder, tmp_path, monkeypatch
):
  _, whole, _ = finished
  made, _ = comparison(tmp_path, plan(folder))
  run, calls = loop.run, []

  def counted(*args, **fields):
    calls.append(args[1])
    if len(calls) == 4:  # of the first comparison
      fields["signals"].name = "SIGTERM"
    return run(*args, **fields)

  monkeypatch.setattr(loop, "run", counted)
  assert made.run() is None and len(calls) == 4
  made, _ = comparison(tmp_path, plan(folder))
  results = made.run()
  assert len(calls) == 4 + 8 - 3
  assert scores(results) == scores(whole)


def test_another_plan_is_refused(finished, folder):
  path, _, _ = finished
  with pytest.raises(ValueError, match="tokens 100 there, 200 here"):
    comparison(path, plan(folder, tokens=200))


def test_one_arm_may_be_added(finished, folder):
  path, whole, _ = finished
  made, _ = comparison(path, plan(folder), ("attention", "mingru", "rglru"))
  results = made.run()
  assert set(results["arms"]) == {"attention", "mingru", "rglru"}
  assert scores(whole).items() <= scores(results).items()


def test_rates_and_seeds_may_be_added(finished, folder, tmp_path, monkeypatch):
  old, whole, _ = finished
  shutil.copytree(old, tmp_path / "copy")
  # of a kill between a result and the end of its state
  killed = tmp_path / "copy/runs/mingru/tune-seed0-lr0.001/checkpoints/5"
  killed.mkdir(parents=True)
  its_plan = plan(folder, seeds=3, lrs=(1e-30, 1e-3, 1e-2))
  made, _ = comparison(tmp_path / "copy", its_plan, together=3)
  run, trained = loop.run, []

  def counted(*args, **fields):
    trained.append(args[1].name)
    return run(*args, **fields)

  monkeypatch.setattr(loop, "run", counted)
  results = made.run()
  assert scores(whole).items() <= scores(results).items()
  new = {"tune-seed0-lr1e-30", "final-seed3-lr0.01"}
  assert set(trained) == new and len(trained) == 4 and killed.exists()


def test_together_is_one_by_one(finished, folder, tmp_path):
  _, whole, _ = finished
  made, _ = comparison(tmp_path, plan(folder), ("mingru",), together=2)
  results = made.run()
  for key, value in scores(results).items():
    assert value == pytest.approx(scores(whole)[key], rel=1e-3)
  # a run has its share of its group's seconds
  clocks = [
    [line["seconds"] for line in metrics.read(lines) if "loss_0" in line]
    for lines in (tmp_path / "runs" / "mingru").glob("*together*")
  ]
  shares = [run["curve"]["seconds"] for run in results["runs"]]
  halves = [[seconds / 2 for seconds in clock] for clock in clocks]
  assert sorted(shares) == sorted(2 * halves)


def test_a_rate_that_diverges_is_listed_and_another_chosen(folder, tmp_path):
  made, said = comparison(
    tmp_path, plan(folder, lrs=(1e-3, 1e30), seeds=1), ("attention",)
  )
  results = made.run()
  bad = [run for run in results["runs"] if run["diverged"]]
  assert [run["lr"] for run in bad] == [1e30]
  assert results["arms"]["attention"]["lr"] == 1e-3
  assert any("diverged" in line for line in said)


def test_a_seed_that_diverges_is_reported(
  finished, folder, tmp_path, monkeypatch
):
  shutil.copytree(finished[0], tmp_path / "copy")
  made, _ = comparison(tmp_path / "copy", plan(folder, seeds=3), ("attention",))

  def lost(*args, **fields):
    raise loop.Diverged("at step 3")

  monkeypatch.setattr(loop, "run", lost)
  results = made.run()
  assert "attention (seed 3 of 3)" in report.leaderboard(results)
  files = report.write(results, tmp_path)
  saved = json.loads(files["results.json"].read_text())["runs"]
  (bad,) = [run for run in saved if run["diverged"]]
  assert bad["seed"] == 3 and bad["bits_per_byte"] is None
  assert all(run.keys() == bad.keys() for run in saved)


def test_a_score_that_is_not_finite_is_a_divergence(
  folder, tmp_path, monkeypatch
):
  made, _ = comparison(tmp_path, plan(folder, seeds=1), ("attention",))
  run = loop.run

  def overflown(cfg, *args, **fields):
    result = run(cfg, *args, **fields)
    if cfg.train.lr == 1e-3:
      lost = dataclasses.replace(result.scores[0], nats=math.nan)
      result = dataclasses.replace(result, scores=[lost])
    return result

  monkeypatch.setattr(loop, "run", overflown)
  results = made.run()
  assert results["arms"]["attention"]["lr"] == 1e-2
  assert [run["diverged"] for run in results["runs"]] == [True, False, False]


def test_a_task_is_scored_by_accuracy(tmp_path):
  its_plan = plan(
    None,
    data="task:mqar,vocab=16,pairs=2,length=12",
    length=12,
    seeds=1,
    lrs=(1e-2,),
  )
  made, _ = comparison(tmp_path, its_plan, ("attention",))
  results = made.run()
  assert results["metric"] == "accuracy"
  assert 0 <= results["runs"][-1]["accuracy"] <= 1


@pytest.mark.parametrize(
  ("fields", "error"),
  [
    ({"seeds": 0}, "seeds=0 must be at least 1"),
    ({"lrs": ()}, "positive learning rates"),
    ({"lrs": (1e-3, 1e-3)}, "names a rate twice"),
    ({"lrs": (1e-3, float("nan"))}, "positive learning rates"),
    ({"lrs": (1e-3, float("inf"))}, "positive learning rates"),
  ],
)
def test_a_wrong_plan_is_refused(fields, error):
  with pytest.raises(ValueError, match=error):
    plan(None, **fields)


def test_no_runs_together_is_refused(folder, tmp_path):
  with pytest.raises(ValueError, match="--together=-1"):
    comparison(tmp_path, plan(folder), together=-1)
  with pytest.raises(ValueError, match="no arms"):
    comparison(tmp_path, plan(folder), archs=())


@pytest.mark.parametrize("text", ['[{"arch": "mam', "{}", "[1]", '[{"a": 1}]'])
def test_a_result_that_is_cut_short_says_what_to_do(
  finished, folder, tmp_path, text
):
  shutil.copytree(finished[0], tmp_path / "copy")
  file = next((tmp_path / "copy" / "runs" / "mingru").glob("*/result.json"))
  file.write_text(text)
  made, _ = comparison(tmp_path / "copy", plan(folder))
  with pytest.raises(ValueError, match="delete it to train .* again") as e:
    made.run()
  assert str(file) in str(e.value) and "\n" not in str(e.value)


def test_another_comparison_is_refused_in_words_before_data_are_loaded(
  finished, folder, monkeypatch
):
  path, _, _ = finished
  monkeypatch.delattr(compare.data_lib, "load")
  other = plan(folder, data="text:/a/book.txt", length=None, settings=("a=1",))
  with pytest.raises(ValueError) as e:
    comparison(path, other)
  text = str(e.value)
  assert f"data text:{folder} there, text:/a/book.txt here" in text
  assert "settings none there, a=1 here" in text and "length" not in text
  assert f"--workdir={path.parent}/compare-" in text and "book" in text
  assert "\n" not in text


def test_states_of_finished_runs_are_dropped(finished):
  """But for each arm's first seed's, from which text can be generated."""
  path, _, said = finished
  kept = [f.parents[1] for f in path.glob("runs/*/*/checkpoints/*")]
  assert {run.parent.name for run in kept} >= {"attention", "mingru"}
  assert all(run.name.startswith("final-seed1-") for run in kept)
  with pytest.raises(ValueError, match="--workdir=.*/attention/final-seed1-lr"):
    checkpoint.load_model(path)
  run = next(path.glob("runs/attention/final-seed1*"))
  assert len(checkpoint.steps(run)) == 1 and checkpoint.load_model(run)
  other = next(path.glob("runs/attention/tune*"))
  with pytest.raises(ValueError, match="dropped once scored; see --keep"):
    checkpoint.load_model(other)
  assert any("MB in" in s and "one seed an arm (--keep)" in s for s in said)


@pytest.mark.parametrize(
  ("keep", "phase", "seeds", "left"),
  [
    ("none", "final", [1], []),
    ("one", "final", [1], [9]),
    ("one", "final", [2], []),
    ("one", "final", [1, 2], []),
    ("one", "tune", [0], []),
    ("all", "tune", [0], [7, 9]),
  ],
)
def test_what_is_kept(keep, phase, seeds, left, folder, tmp_path):
  for step in (7, 9):
    (tmp_path / f"checkpoints/{step}").mkdir(parents=True)
  made, _ = comparison(tmp_path / "w", plan(folder), ("mingru",), keep=keep)
  made.drop(tmp_path, phase, [(seed, 0.1) for seed in seeds])
  assert checkpoint.steps(tmp_path) == left


def test_rates_that_six_digits_do_not_tell_apart(tmp_path):
  """And runs of a rate whose folder was named by six digits are found."""
  place = compare.Comparison.folder
  a, b = 0.00123456789, 0.00123456788
  assert f"{a:g}" == f"{b:g}" and place(tmp_path, "tune", 0, 1e-2) == (
    tmp_path / "tune-seed0-lr0.01"
  )
  old = tmp_path / f"tune-seed0-lr{a:g}"
  new = [place(tmp_path, "tune", 0, lr) for lr in (a, b)]
  assert new[0] != new[1] and old not in new
  old.mkdir()
  (old / "result.json").write_text(json.dumps({"lr": a}))
  assert [place(tmp_path, "tune", 0, lr) for lr in (a, b)] == [old, new[1]]


def test_what_is_left_is_told():
  clock = schedule.Clock({"a": 100, "b": 300}, 4)
  assert str(clock) == "run 1 of 8"
  clock.done("a", 1)  # by an earlier start
  clock.done("a", 1, 50.0, 40.0)
  # 2 runs of 10 s, and 4 of 30 s that compile, too
  assert str(clock) == "run 3 of 8, about 3 min left"
  clock.done("a", 2, 20.0)
  clock.done("b", 3, 90.0)
  assert str(clock) == "run 8 of 8, about 30 s left"
  assert [schedule.span(s) for s in (59, 5400, 200_000)] == [
    "1 min",
    "1.5 h",
    "2.3 d",
  ]


def test_one_step_has_no_rate(folder, tmp_path):
  made, _ = comparison(tmp_path, plan(folder, tokens=26), ("mingru",))
  result = loop.Result({}, 1, True, [], 0.0, 3.0, [])
  assert made.timing(result, 1)["tokens_per_second"] is None
  result = dataclasses.replace(result, step=3, seconds=2.0)
  assert made.timing(result, 1)["tokens_per_second"] == 26


def test_all_is_every_config():
  assert list(configs.several(["all"])) == configs.names()


def test_settings_are_of_every_arm():
  arms = configs.several(
    ["mamba", "mamba2:head=32"], ["model.dtype=bfloat16", "train.decay=0.2"]
  )
  for cfg in arms.values():
    assert cfg.model.dtype == "bfloat16" and cfg.train.decay == 0.2
  assert arms["mamba2:head=32"].model.mixers.mamba2.head == 32
  for setting, error in (
    ("train.batch=3", "train.batch is set by --batch"),
    ("dim", "mamba: 'dim' sets no field: write mamba:FIELD=VALUE"),
    ("", "mamba: '' sets no field"),
    ("model.length=9", "model.length is set by --length"),
    ("model.vocab.size=300", "model.vocab.size is that of the data"),
    ("negative=True", "mamba2 has no field 'negative'"),
  ):
    with pytest.raises(ValueError, match=error):
      configs.several(["mamba", "mamba2"], [setting])


def test_arms_may_read_other_symbols(folder, tmp_path):
  archs = ["mingru", "mingru:data.tokenizer=bpe:input=ngram:output=adaptive"]
  settings = ("data.vocab=270",)
  made = compare.Comparison(
    configs.several(archs, settings),
    plan(folder, settings=settings),
    tmp_path / "w",
    say=lambda line: None,
  )
  (one, of_bytes), (other, of_bpe) = made.configs.values()
  assert (of_bytes.vocab, of_bpe.vocab) == (256, 270)
  assert (one.data.tokenizer, other.data.tokenizer) == ("bytes", "bpe")
  for field, by in (("name='a'", "--data"), ("documents=False", "--data")):
    with pytest.raises(ValueError, match=f"is set by {by}"):
      configs.several(["mingru"], [f"data.{field}"])
  with pytest.raises(ValueError, match="no field 'data.tokeniser'|set by"):
    configs.several(["mingru"], ["data.tokeniser=bpe"])


def test_whole_numbers_of_settings_may_be_written_as_rates():
  (cfg,) = configs.several(["mamba2"], ["train.warmup=2e1"]).values()
  assert cfg.train.warmup == 20 and type(cfg.train.warmup) is int


@pytest.mark.parametrize(
  ("arm", "settings", "said"),
  [
    ("mamba2", ("model.dim=512",), "mamba2: model.dim=512 would be "),
    ("mamba2:dim=512", (), "mamba2:dim=512: model.dim=512 would be "),
    ("mamba2", ("train.warmup=900",), "train.warmup=900 would be "),
  ],
)
def test_what_no_arm_would_have_is_refused(
  arm, settings, said, folder, tmp_path
):
  made = compare.Comparison(
    configs.several([arm], settings),
    plan(folder, settings=settings, params=60_000),
    tmp_path / "w",
    say=lambda line: None,
  )
  with pytest.raises(ValueError, match=said):
    made.run()


def test_settings_are_of_the_plan_and_the_results(folder, tmp_path):
  given = plan(folder, settings=("model.dtype=bfloat16",))
  made, _ = comparison(tmp_path, given, ("mingru",))
  assert made.results({}, [], made.configs["mingru"][1])["settings"] == [
    "model.dtype=bfloat16"
  ]
  assert "settings" not in plan(folder).fixed  # as before there were any
  assert given.other(plan(folder).fixed) == [
    "settings none there, model.dtype=bfloat16 here"
  ]


def test_a_refused_plan_may_be_corrected(folder, tmp_path, monkeypatch):
  made, _ = comparison(tmp_path, plan(folder, params=10))
  with pytest.raises(ValueError, match="no width reaches 10"):
    made.run()
  made, _ = comparison(tmp_path, plan(folder, length=9999))
  with pytest.raises(ValueError, match="less than one window"):
    made.run()
  made, _ = comparison(tmp_path, plan(folder), ("attention",))

  def nothing(*_):
    return []
    yield

  monkeypatch.setattr(made, "search", nothing)
  assert made.run()["runs"] == []


@pytest.mark.parametrize(("data", "length"), [("task:mqar", 64), (None, 256)])
def test_a_length_that_is_not_given(folder, tmp_path, data, length):
  its_plan = plan(folder, length=None, **({"data": data} if data else {}))
  made, _ = comparison(tmp_path, its_plan, ("attention",))
  assert made.plan.length == length


def test_another_length_than_the_tasks_is_refused(tmp_path):
  made, _ = comparison(tmp_path, plan(None, data="task:mqar"))
  with pytest.raises(ValueError, match="sequences of 64.*give --length=64"):
    made.run()


def test_an_arm_that_diverges_at_every_rate_is_reported(folder, tmp_path):
  made, said = comparison(
    tmp_path / "w", plan(folder, lrs=(1e30,), seeds=1), ("attention",)
  )
  results = made.run()
  assert results["arms"]["attention"]["lr"] is None
  assert any("diverged at every rate" in line for line in said)
  report.write(results, tmp_path)
  assert "No final run: attention" in report.leaderboard(results)


def test_runs_of_an_edited_config_are_not_reused(finished, folder, tmp_path):
  shutil.copytree(finished[0], tmp_path / "copy")
  made, _ = comparison(tmp_path / "copy", plan(folder))
  cfg, data = made.configs["mingru"]
  with cfg.unlocked():
    cfg.train.decay = 0.25
  with pytest.raises(ValueError, match="decay: saved 0.1, given 0.25"):
    made.run()


def test_runs_of_other_code_are_refused_unless_told(
  finished, folder, tmp_path, monkeypatch
):
  old, whole, _ = finished
  run = whole["runs"][0]
  assert run["code"] and run["versions"]["jax"] and run["machine"]["cpu"]
  shutil.copytree(old, tmp_path / "copy")
  known = provenance.code
  monkeypatch.setattr(
    provenance, "code", lambda m: known(m) + "x" * (m.pattern[0] == "mingru")
  )
  made, _ = comparison(tmp_path / "copy", plan(folder))
  with pytest.raises(
    ValueError, match="other code of mingru: .*--old_code"
  ) as e:
    made.run()
  assert "\n" not in str(e.value)
  # and where it cannot be known, that is said
  for file in (tmp_path / "copy" / "runs" / "attention").glob("*/result.json"):
    saved = json.loads(file.read_text())
    for key in ("code", "versions", "machine"):
      del saved[key]
    file.write_text(json.dumps(saved))
  made.old_code = True
  results = made.run()
  assert scores(results) == scores(whole)
  assert "at the commits unknown (4) and" in report.leaderboard(results)
  # nor does one go on that other code began
  path = tmp_path / "begun"
  assert made.begun(path, "mingru") != made.begun(path, "attention")
  (path / "checkpoints" / "4").mkdir(parents=True)
  assert made.begun(path, "attention") == made.code["attention"]
  assert made.begun(path, "mingru") == made.code["attention"]
  made.old_code = False
  with pytest.raises(
    ValueError, match="begun was trained by other code of min"
  ):
    made.begun(path, "mingru")


def test_no_arm():
  with pytest.raises(ValueError, match="--archs names no config"):
    configs.several([])


def test_an_arm_may_be_a_variant():
  named = configs.several(["mamba", "mamba:negative=True"])
  plain, negative = named.values()
  assert negative.model.mixers.mamba.negative
  assert "negative" not in plain.model.mixers.mamba
  several = configs.variant(
    "attention:head=16:model.vocab.tied=True:norm_eps=1e-5"
  )
  assert several.model.mixers.attention.head == 16
  assert several.model.vocab.tied and several.is_locked


@pytest.mark.parametrize(
  ("arm", "message"),
  [
    ("mamba4:negative=True", "unknown architecture 'mamba4'"),
    ("mamba:negative", "sets no field: write mamba:FIELD=VALUE"),
    ("mamba:negatve=True", "no field 'negatve': did you mean 'negative'"),
    ("mamba:norm=rms", "several 'norm': model.norm, model.mixers.mamba.norm"),
    ("mamba:train.lr=1.0", "no field 'train.lr'"),
    ("attention:head=wide", "model.mixers.attention.head=wide: .* type"),
  ],
)
def test_wrong_variants(arm, message):
  with pytest.raises(ValueError, match=message):
    configs.variant(arm)
