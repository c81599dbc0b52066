"""A report says what the runs say, on its own, and of nothing else."""

import csv
import json
import math
import re
import sys
import types
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from train import report
from train.report import data as report_data
from train.report import figures as report_figures
from train.report import kinds as report_kinds
from train.report import svg as report_svg

VOID = {"meta", "br", "input", "link", "img"}


def make(arms=("a", "b", "c"), seeds=(1, 2, 3), metric="bits_per_byte", **over):
  """A comparison in which the arm at index i scores about 2 + i / 10."""
  results = {
    "format": 1,
    "created": "2026-01-02T03:04:05",
    "command": "python -m launch.compare",
    "versions": {"jax": "0.0"},
    "machine": {"cpu": "two cores"},
    "data": {
      "name": "stdlib",
      "hash": "ab12",
      "note": "",
      "tokenizer": "bytes",
      "is_task": metric == "accuracy",
    },
    "metric": metric,
    "length": 64,
    "batch": 8,
    "optimizer": "adamw",
    "eval_bytes": 64_000,
    "tokens": 70_000,
    "arms": {
      arm: {
        "params": 10_000 + i,
        "params_embedding": 1_000,
        "sizes": {"dim": 8, "depth": 3, "inner": 16 + i},
        "flops_per_token": 20_000.0,
        "decode_flops": {"1024": 2e4, "65536": 3e5},
        "state_bytes": {"1024": 4096, "65536": 8192 << i},
        "lr": 3e-3,
        "lr_at_edge": False,
      }
      for i, arm in enumerate(arms)
    },
    "runs": [],
  }
  for i, arm in enumerate(arms):
    for phase, seed, lr in [
      ("tune", 0, 1e-3),
      ("tune", 0, 3e-3),
      *(("final", seed, 3e-3) for seed in seeds),
    ]:
      score = 2 + i / 10 + 0.001 * math.sin(seed * (i + 1)) + abs(lr - 3e-3)
      if metric == "accuracy":
        score = 1 - score / 4
      steps = np.arange(1, 151)
      loss = (score + 3 / steps) * math.log(2)
      results["runs"].append(
        {
          "arch": arm,
          "seed": seed,
          "lr": lr,
          "phase": phase,
          "params": 10_000 + i,
          metric: score,
          "split": "test" if phase == "final" else "valid",
          "nats": score * math.log(2),
          "positions": 1600.0,
          "tokens": 70_000,
          "seconds": 35.0,
          "tokens_per_second": 2000.0,
          "compile_seconds": 1.0,
          "diverged": False,
          "curve": {
            "step": steps.tolist(),
            "tokens": (steps * 70_000 / 150).tolist(),
            "seconds": (steps * 35 / 150).tolist(),
            "loss": loss.tolist(),
          },
          "config": {"model": {"mixer": arm}},
        }
      )
  return results | over


def diverge(results, arm, phase, seed, left=None):
  """Without `left`, as a run that was trained alone; else as one of several,
  whose curve has holes."""
  for run in results["runs"]:
    if (run["arch"], run["phase"], run["seed"]) == (arm, phase, seed):
      run |= {"diverged": True, "nats": None, results["metric"]: left}
      loss = run["curve"]["loss"]
      loss[7:] = [math.nan] * (len(loss) - 7)
      if left is None:
        run["curve"] = {key: [] for key in run["curve"]}
      return run


class Page(HTMLParser):
  """Parses strictly: every tag closes in order. Keeps words and references."""

  def __init__(self, source):
    super().__init__()
    self.open, self.words, self.references, self.scripts = [], [], [], []
    self.feed(source)
    self.close()
    assert not self.open, f"never closed: {self.open}"

  def handle_starttag(self, tag, attributes):
    names = [name for name, _ in attributes]
    assert len(names) == len(set(names)), f"twice in {tag}: {names}"
    for name, value in attributes:
      if name in ("src", "href", "srcset", "action", "data", "xlink:href"):
        self.references.append(value)
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attributes):
    pass

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, words):
    if self.open and self.open[-1] == "script":
      self.scripts.append(words)
    else:
      self.words.append(words)

  @property
  def text(self):
    return " ".join(self.words)


def page(conditions, folder):
  return Page(
    report.write(conditions, folder)["report.html"].read_text("utf-8")
  )


def only_finite(name):
  raise AssertionError(f"{name} is not JSON")


def test_json_is_the_results_and_the_leaderboard(tmp_path):
  results = make()
  path = report.write(results, tmp_path)["results.json"]
  read = json.loads(path.read_text(), parse_constant=only_finite)
  assert [row["arch"] for row in read.pop("leaderboard")] == ["a", "b", "c"]
  assert read == results
  assert report.read(tmp_path)["runs"] == results["runs"]
  assert not list(tmp_path.glob("*.part"))


def test_what_is_not_finite_and_numpy_become_json(tmp_path):
  results = make(tokens=np.int64(70_000))
  diverge(results, "b", "final", 2, left=math.nan)
  path = report.write(results, tmp_path)["results.json"]
  read = json.loads(path.read_text(), parse_constant=only_finite)
  assert read["tokens"] == 70_000
  (run,) = [run for run in read["runs"] if run["diverged"]]
  assert run["bits_per_byte"] is None and run["curve"]["loss"][-1] is None
  # what was written is read, and reported again to the same words
  again = report.read(tmp_path)
  assert report.leaderboard(again) == report.leaderboard(results)
  page(again, tmp_path / "again")


def test_csv_has_a_line_a_run(tmp_path):
  results = make()
  path = report.write(results, tmp_path)["results.csv"]
  with path.open(newline="") as f:
    table = list(csv.DictReader(f))
  assert len(table) == len(results["runs"])
  for line, run in zip(table, results["runs"], strict=True):
    assert float(line["score"]) == run["bits_per_byte"]
    assert line["arch"] == run["arch"] and int(line["seed"]) == run["seed"]
  assert table[-1]["rank"] == "3"


def test_files_and_what_arms_say_of_themselves(tmp_path):
  """Where there is some, and of the arms that have it."""
  results = make()
  plain = report.write(results, tmp_path / "plain")
  for run in results["runs"]:
    if run["phase"] == "final" and run["arch"] != "a":
      score = {"nats": 1.5, "bits_per_byte": 2.345}
      run["exported"] = {"bits": "8", "bytes": 7 * 1024, **score}
    if run["phase"] == "final" and run["arch"] == "c":
      run["statistics"] = {"dead_experts": 0.125 * run["seed"]}
  made = report.write(results, tmp_path / "made")
  for paths, there in ((plain, False), (made, True)):
    page = paths["report.html"].read_text()
    Page(page)
    assert ("dead experts" in page) == there == ("2.345" in page)
    assert ("float16" in page) == there == ("say of themselves" in page)
  text = report.leaderboard(results)
  assert max(map(len, text.splitlines())) <= 80
  assert "c: dead experts 0.25" in text and "7.00 KiB" in text
  assert "exported" not in report.leaderboard(make())
  with made["results.csv"].open(newline="") as f:
    found = {r["arch"]: r["bytes_exported"] for r in csv.DictReader(f)}
  assert found == {"a": "", "b": "7168.0", "c": "7168.0"}
  run["exported"]["bits_per_byte"] = None
  report_kinds.check(results)
  run["statistics"]["dead_experts"] = -1.5
  report_kinds.check(results)
  for wrong in ("low", math.inf):
    run["exported"]["bits_per_byte"] = wrong
    with pytest.raises(ValueError, match=r"exported.bits_per_byte .* number"):
      report_kinds.check(results)
  del run["exported"]["bits_per_byte"]
  with pytest.raises(ValueError, match="exported.*bits_per_byte"):
    report_kinds.check(results)


@pytest.mark.parametrize("metric", ["bits_per_byte", "accuracy"])
@pytest.mark.parametrize(
  "size", [{}, {"arms": ("a",), "seeds": (1,)}, {"seeds": ()}]
)
def test_page_stands_alone(metric, size, tmp_path):
  parsed = page(make(metric=metric, **size), tmp_path)
  assert parsed.references == []
  source = (tmp_path / "report.html").read_text("utf-8")
  # addresses: only the name of SVG, which nothing fetches
  assert set(re.findall(r"https?://[^\"' >]*", source)) <= {
    "http://www.w3.org/2000/svg"
  }
  assert not re.search(r"@import|url\((?!#)", source)
  picture = (tmp_path / "comparison.svg").read_text("utf-8")
  ElementTree.fromstring(picture)
  assert not re.search(r'[ "MLHV](nan|inf)\b', source + picture)


def test_page_escapes_names(tmp_path):
  evil = "</script><script>alert(1)</script>\"'&"
  results = make(arms=(evil, "b"), command="<i>run</i>")
  results["data"]["note"] = "<b>bold</b>"
  parsed = page(results, tmp_path)
  assert evil in parsed.text
  assert parsed.text.count("<b>bold</b>") == 2  # a warning and a condition
  (curves,) = [s for s in parsed.scripts if s.startswith("{")]
  assert set(json.loads(curves)) == {evil, "b"}
  assert not any("alert(1)" in s for s in parsed.scripts if s != curves)
  ElementTree.parse(tmp_path / "comparison.svg")


def test_verdict_names_a_leader_and_its_lead():
  results = make()
  text = report_data.verdict(results, report.rows(results))
  assert text.startswith("a leads with 2.00")
  assert "after 7 tokens a parameter" in text
  assert "below b, the next" in text and "more than the noise" in text


def test_seeds_that_not_all_arms_have_are_left_out_and_named():
  results = make(seeds=(1, 2, 3, 4, 5))
  results["runs"] = [
    run for run in results["runs"] if run["arch"] != "c" or run["seed"] < 4
  ]
  table = report.rows(results)
  assert "the noise of 3 seeds" in report_data.verdict(results, table)
  assert [row["seeds"] for row in table] == [[1, 2, 3]] * 3
  said = " ".join(report.leaderboard(results).split())
  assert "left out of scores and ranks: a (4, 5) and b (4, 5)." in said


def test_verdict_names_the_arm_that_is_better_on_common_seeds():
  results = make(("a", "b"), seeds=(1, 2, 3, 4, 5))
  scores = {
    "a": {1: 1.010, 2: 1.021, 3: 1.009, 4: 0.9, 5: 0.9},
    "b": {1: 1.000, 2: 1.010, 3: 1.000},
  }
  results["runs"] = [
    run | {"bits_per_byte": scores[run["arch"]][run["seed"]]}
    for run in results["runs"]
    if run["phase"] == "final" and run["seed"] in scores[run["arch"]]
  ]
  text = report_data.verdict(results, report.rows(results))
  assert text.startswith("b leads with 1.003") and "0.0100 ± 0.0025" in text


def test_verdict_of_a_tie():
  results = make()
  for run in results["runs"]:
    if run["arch"] == "b":
      run["bits_per_byte"] += -0.1 + 0.01 * (run["seed"] - 2)
  text = report_data.verdict(results, report.rows(results))
  assert "b and a lead together" in text and "noise of 3 seeds and 3" in text
  assert "c, the next" in text


def test_accuracy_is_better_when_higher():
  results = make(metric="accuracy")
  table = report.rows(results)
  assert [row["arch"] for row in table] == ["a", "b", "c"]
  assert "above b" in report_data.verdict(results, table)


def test_one_seed_says_that_it_tells_nothing(tmp_path):
  results = make(seeds=(1,))
  assert [row["rank"] for row in report.rows(results)] == [1, 1, 1]
  parsed = page(results, tmp_path)
  assert "one seed cannot tell a difference from noise" in parsed.text
  assert "±" not in parsed.text


def test_diverged_runs_are_listed_and_not_averaged(tmp_path):
  results = make()
  diverge(results, "a", "final", 2, left=0.5)  # what its frozen state scores
  diverge(results, "b", "tune", 0)
  table = report.rows(results)
  assert [(r["arch"], r["rank"]) for r in table] == [
    ("b", 1), ("c", 2), ("a", None),
  ]  # fmt: skip
  kept = [
    run["bits_per_byte"]
    for run in results["runs"]
    if run["arch"] == "a" and run["seed"] in (1, 3)
  ]
  assert table[-1]["score"] == pytest.approx(np.mean(kept))
  text = report.leaderboard(results)
  assert "a (seed 2 of 3)" in text.replace("\n", " ") and "†" in text
  assert "Diverged at a rate of the grid: b (1e-3)." in text
  parsed = page(results, tmp_path)
  assert "Diverged runs" in parsed.text
  assert len(report_data.diverged_runs(results)) == 2
  # the cross in the panel of its learning rates, narrow and wide
  source = (tmp_path / "report.html").read_text("utf-8")
  assert source.count("1e-3 diverged") == 2


def test_first_look():
  enough, short = make(tokens=50_010), make(tokens=49_990)
  assert "first look" not in report.leaderboard(enough)
  assert "first look" in report.leaderboard(short)
  assert "first look" in report.leaderboard(make(tokens=20_000))
  assert "than 5 tokens a parameter (4.99 at" in report.leaderboard(short)


def test_unequal_text_is_said():
  results = make()
  assert "unequal text" not in report.leaderboard(results)
  for run in results["runs"]:
    if run["arch"] == "b":  # four bytes a token
      run["nats"] *= 4
  text = " ".join(report.leaderboard(results).split())
  assert "unequal text at equal tokens: a 70k, b 280k and c 70k bytes" in text
  assert "unequal text" not in report.leaderboard(make(metric="accuracy"))


def test_edge_of_the_grid_is_marked(tmp_path):
  results = make()
  assert "edge" not in page(results, tmp_path).text
  results["arms"]["b"]["lr_at_edge"] = True
  parsed = page(results, tmp_path)
  assert "at the edge of the grid for b (3e-3)" in parsed.text
  assert "best at the edge" in parsed.text


def test_leaderboard_fits_a_terminal():
  arms = tuple(f"an_architecture_with_a_long_name_{i}" for i in range(12))
  results = make(arms=arms)
  for run in results["runs"]:
    run["seconds"], run["tokens_per_second"] = 12_345.6, 1_234_567.8
  results["tokens"] = 123_456_789
  text = report.leaderboard(results)
  assert max(map(len, text.splitlines())) <= 80


def test_the_leaderboard_for_programs_and_papers(tmp_path):
  results = make(("a_b", "x|y", "c"))
  files = report.write(results, tmp_path)
  with files["leaderboard.csv"].open(newline="") as f:
    table = list(csv.DictReader(f))
  rows = report.rows(results)
  for line, row in zip(table, rows, strict=True):
    assert line["arch"] == row["arch"] and line["seeds"] == "1 2 3"
    for key in ("rank", "rank_last", "score", "interval", "params"):
      assert float(line[key]) == row[key]
  assert float(table[1]["gap_interval"]) == rows[1]["gap_interval"]
  value, gap = (
    report_data.plus_minus(rows[1][key], rows[1][half], 4, signed=key == "gap")
    for key, half in (("score", "interval"), ("gap", "gap_interval"))
  )
  markdown = files["leaderboard.md"].read_text()
  assert f"| 2 | x\\|y | {value} | {gap} |" in markdown
  pipes = {
    len(re.findall(r"(?<!\\)\|", line))
    for line in markdown.splitlines()
    if line.startswith("|")
  }
  assert len(pipes) == 1 and "a_b leads" in markdown
  latex = files["leaderboard.tex"].read_text()
  assert r"1 & a\_b & 2.0006 $\pm$ 0.0011" in latex
  assert {line.count("&") for line in latex.splitlines() if "\\\\" in line} == {
    8
  }


def test_the_page_tells_how_runs_were_trained(tmp_path):
  results = make()
  for run in results["runs"]:
    run["config"] = {
      "train": {
        "schedule": "cosine", "warmup": 48, "cooldown": 0.2, "final": 0.1,
        "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8, "momentum": 0.95,
        "decay": 0.1 if run["arch"] != "b" else 0.2, "clip": 1.0,
      },
      "model": {"dtype": "float32"},
    }  # fmt: skip
  text = page(results, tmp_path).text
  for fact in (
    "test, a slice of 64,000 bytes, 1,600 targets",
    "1e-3, 3e-3, tried by seed 0 on valid",
    "cosine, 48 steps of warm-up, down to 0.1 of the peak",
    "adamw, beta1 0.9, beta2 0.99, epsilon 1e-08, decay 0.1 or 0.2 of matrices"
    ", gradients clipped to a norm of 1",
  ):
    assert fact in text
  assert "bfloat16" not in text
  results["machine"]["platform"] = "tpu"
  assert "a TPU multiplies float32 matrices as bfloat16" in (
    page(results, tmp_path).text
  )


def test_runs_of_several_origins_are_said():
  results = make()
  assert "commit" not in report.leaderboard(results)
  for run in results["runs"]:
    own = {"commit": "a" * 40, "jax": "0.9.0" if run["seed"] else "0.10.0"}
    run |= {"versions": own, "machine": {"cpu": "one"}}
  said = " ".join(report.leaderboard(results).split())
  assert "commit" not in said and "jax 0.10.0 and 0.9.0" in said
  results["runs"][0]["versions"] = {"commit": "b" * 40 + "-dirty"}
  results["runs"][1]["versions"] = None  # kept before runs told theirs
  said = " ".join(report.leaderboard(results).split())
  assert "aaaaaaa (13), bbbbbbb-dirty (1) and unknown (1)" in said
  assert "more than one machine" not in said
  results["runs"][0]["machine"] = {"cpu": "two"}
  assert "more than one machine" in report.leaderboard(results)


def test_that_ranks_are_of_differences_stands_beside_them(tmp_path):
  results = make()
  for run in results["runs"]:  # what a seed does to all arms
    run["bits_per_byte"] += 0.2 * run["seed"]
  table = report.rows(results)
  assert [row["rank"] for row in table] == [1, 2, 3]
  assert table[0]["interval"] > table[2]["gap"]
  beside = "from differences seed by seed"
  assert beside in " ".join(report.leaderboard(results).split())
  assert beside in page(results, tmp_path).text
  assert beside in (tmp_path / "leaderboard.md").read_text()


def test_pictures_need_no_browser():
  """Viewers that are none know no variables and media queries, and some no
  style sheet."""
  drawn = report_figures.every(results := make(), report.rows(results))
  drawn["comparison"] = report_figures.picture(results, report.rows(results))
  assert len(drawn) == 10
  for name, svg in drawn.items():
    root = ElementTree.fromstring(svg)
    style = root.find("{http://www.w3.org/2000/svg}style").text
    assert "var(" not in svg and "paint-order" not in svg
    light, _, dark = style.partition("@media")
    known = set(re.findall(r"\.(\w+)", style))
    used = {
      word
      for element in root.iter()
      for word in element.get("class", "").split()
    }
    assert used - known <= {"arm"}, name
    for element in root.iter():
      shape = element.tag.rpartition("}")[2]
      if shape in ("path", "circle", "line", "text"):
        colours = {element.get("fill"), element.get("stroke")} - {None, "none"}
        assert colours and all(colour[0] == "#" for colour in colours)
    # dark has a word for every colour that is neither inherited nor an arm's
    for rule in re.findall(r"svg (\S+) \{[^}]*#", light):
      assert rule in dark


def test_pictures_as_png_and_pdf(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "vl_convert", None)
  with pytest.raises(ValueError, match="pip install vl-convert-python") as e:
    report.converter()
  assert "\n" not in str(e.value)
  fake = types.SimpleNamespace(
    svg_to_png=lambda svg, scale: b"PNG", svg_to_pdf=lambda svg: b"PDF"
  )
  monkeypatch.setitem(sys.modules, "vl_convert", fake)
  files = report.write(make(), tmp_path, pictures=True)
  assert files["comparison.png"].read_bytes() == b"PNG"
  assert (tmp_path / "figures" / "learning_rates.pdf").read_bytes() == b"PDF"
  assert (tmp_path / "figures" / "scores.svg").read_text().startswith("<svg")


def test_curve_is_in_bits_per_byte_and_ends_where_the_run_does():
  results = make()
  for run in results["runs"]:  # a tokeniser of four bytes a token
    run["nats"] *= 4
    run["curve"]["loss"] = [4 * loss for loss in run["curve"]["loss"]]
  curve = report_data.curve(results, "a")
  assert len(curve["loss"]) <= report_data.BINS
  assert curve["loss"][-1] == pytest.approx(2.02, abs=0.01)
  assert curve["tokens"][-1] == 70_000
  assert curve["seconds"][-1] == pytest.approx(35)
  assert curve["flops"][-1] == pytest.approx(3 * 70_000 * 20_000)


def test_merge_of_equals_is_one_ranking(tmp_path):
  merged = report.merge({"W1": make(("a", "b")), "W2": make(("b", "x"))})
  assert len(merged) == 1
  assert set(merged[0]["arms"]) == {"a", "b@W1", "b@W2", "x"}
  assert len(report.rows(merged[0])) == 4
  assert report_data.mismatch(merged) == ""
  parsed = page(merged, tmp_path)
  assert "W1" in parsed.text and "W2" in parsed.text


@pytest.mark.parametrize(
  "other, named",
  [
    ({"tokens": 80_000}, "tokens"),
    ({"length": 128}, "length"),
    ({"batch": 16}, "batch"),
    ({"optimizer": "muon"}, "optimizer"),
    ({"eval_bytes": 9}, "eval_bytes"),
    ({"metric": "accuracy"}, "metric"),
    ({"hash": "cd34"}, "data hash"),
    ({"settings": ["model.dtype=bfloat16"]}, "settings"),
  ],
)
def test_merge_never_ranks_across_conditions(other, named, tmp_path):
  other = dict(other)
  second = make(("a", "x"), metric=other.pop("metric", "bits_per_byte"))
  second["data"]["hash"] = other.pop("hash", second["data"]["hash"])
  merged = report.merge({"W1": make(("a", "b")), "W2": second | other})
  assert [set(c["arms"]) for c in merged] == [{"a@W1", "b"}, {"a@W2", "x"}]
  warning = report_data.mismatch(merged)
  assert f"differ in {named} (" in warning and "2 separate rankings" in warning
  assert warning in report.leaderboard(merged)
  assert warning in page(merged, tmp_path).text
  read = json.loads((tmp_path / "results.json").read_text())
  assert {run["condition"] for run in read["runs"]} == {0, 1}
  assert [r["rank"] for r in read["leaderboard"]] == [1, 2, 1, 2]
  with pytest.raises(ValueError, match="give the workdirs"):
    report.read(tmp_path)


def test_a_text_of_which_nothing_is_left_to_learn(tmp_path):
  results = make()
  for run in results["runs"]:
    if run["arch"] == "a":
      run["bits_per_byte"] = run["nats"] = 0.0
  assert "a leads with 0.000" in report.leaderboard(results)
  report.write(results, tmp_path)


def test_what_cannot_be_shown_is_refused():
  for change, why in (
    ({"data": {**make()["data"], "is_task": None}}, "data.is_task"),
    ({"arms": {"a\x01": make()["arms"]["a"]}, "runs": []}, "cannot be printed"),
  ):
    with pytest.raises(ValueError, match=why):
      report_kinds.check(make() | change)
  rare = make()
  rare["arms"]["a"]["lr"] = 5e-324
  with pytest.raises(ValueError, match="above 0, and in float32"):
    report_kinds.check(rare)


def test_few_answers_are_said():
  said = " ".join(report.leaderboard(make(metric="accuracy")).split())
  assert "A score is of 1,600 answers" in said and "error, some 0.013" in said
  assert "answers" not in report.leaderboard(make())


def test_a_merge_keeps_all_notes_and_is_merged_again():
  first, second, third = make(["a"]), make(["b"]), make(["c"])
  second["data"] |= {"note": "short", "tokenizer": "bpe"}
  (merged,) = report.merge({"W1": first, "W2": second})
  (merged,) = report.merge({"W": merged, "W3": third})
  assert (merged["data"]["note"], merged["data"]["tokenizer"]) == (
    "short",
    "bytes, bpe",
  )
  assert [s["name"] for s in merged["sources"]] == ["W1", "W2", "W3"]
  assert set(merged["arms"]) == {"a", "b", "c"}


@pytest.mark.parametrize(
  ("paths", "ends"),
  [
    (["/home/me/runs/one", "/home/me/runs/two"], ["one", "two"]),
    (["x/one/run", "x/two/run", "x/two/far"], ["one/run", "two/run", "far"]),
    (["run", "a/run"], ["run", "a/run"]),
    (["C:", "."], ["C:", "."]),
  ],
)
def test_an_arms_name_has_no_more_of_a_path_than_it_needs(paths, ends):
  merged = report.merge({path: make(["a"]) for path in paths})
  assert list(merged[0]["arms"]) == [f"a@{end}" for end in ends]
  assert [source["name"] for source in merged[0]["sources"]] == paths


def test_a_report_of_several_overwrites_no_comparison(tmp_path):
  for name in "abc":
    report.write(make([name]), tmp_path / name)
  (tmp_path / "d").mkdir()
  (tmp_path / "d" / "config.json").touch()  # of a comparison under way
  named = [str(tmp_path / "a"), tmp_path / "b"]
  for folder in (None, tmp_path / "b", tmp_path / "c", tmp_path / "d"):
    with pytest.raises(ValueError, match="--workdir of its own"):
      report.gather(named, folder)
  for _ in range(2):  # its own it may
    report.write(report.gather(named, tmp_path / "out"), tmp_path / "out")
  with pytest.raises(ValueError, match="a workdir twice"):
    report.gather([tmp_path / "a", f"{tmp_path}/a/"], tmp_path / "out")
  with pytest.raises(ValueError, match="no workdirs"):
    report.gather([], tmp_path / "out")


@pytest.mark.parametrize(
  ("text", "error"),
  [
    ('{"format": 1}', "lacks created, .*arms, runs, metric"),
    ("[]", "is no comparison's"),
    ('{"format": 1, "conditions": []}', "give the workdirs"),
  ],
)
def test_what_is_no_result_says_so(tmp_path, text, error):
  (tmp_path / "results.json").write_text(text)
  with pytest.raises(ValueError, match=error) as e:
    report.read(tmp_path)
  assert str(tmp_path) in str(e.value)


def test_bad_input(tmp_path):
  with pytest.raises(ValueError, match="no results.json"):
    report.read(tmp_path)
  (tmp_path / "results.json").write_text('{"format": ')
  with pytest.raises(ValueError, match="is not JSON"):
    report.read(tmp_path)
  with pytest.raises(ValueError, match="format 2, this reads 1"):
    report.rows(make(format=2))
  with pytest.raises(ValueError, match="'loss' is none of"):
    report.rows(make(metric="bits_per_byte") | {"metric": "loss"})
  with pytest.raises(ValueError, match="two final runs of 'a' with seed 1"):
    report.rows(make(seeds=(1, 1)))
  with pytest.raises(ValueError, match="the arms are"):
    report.rows(make(arms=("a",)) | {"arms": {}})


def test_an_arm_far_behind_is_an_arrow():
  results = make(arms=("a", "b", "c", "d"))
  table = report.rows(results)
  assert report_figures.bound(results, table) is None
  assert "→" not in report_figures.forest(results, table, 358)
  for run in results["runs"]:
    run["bits_per_byte"] += 3 * (run["arch"] == "d")
  table = report.rows(results)
  drawn = report_figures.forest(results, table, 358)
  assert drawn.count("→") == 1
  places = report_data.decimals(table)
  assert f"{table[-1]['score']:.{places}f} ±" in drawn  # still told
  assert "d ↑ 5.30" in report_figures.pareto(
    results, table, "params", "parameters", 358
  )


def test_labels_never_overlap():
  points = [(100 + i % 3, 100 + 2 * i) for i in range(14)]
  area = (0, 0, 340, 250)
  boxes = report_figures.place_labels(points, ["some_arm"] * 14, area)
  placed = [box for box in boxes if box is not None]
  assert boxes[0] is not None and len(placed) >= 5
  for i, a in enumerate(placed):
    for b in placed[:i]:
      assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
  apart = report_svg.spread([5.0, 5.0, 4.0, 90.0], 10, 0, 92)
  assert np.diff(sorted(apart)).min() >= 10 - 1e-9
  assert np.argsort(apart, kind="stable").tolist() == [2, 0, 1, 3]
  assert min(apart) >= 0 and max(apart) <= 92


@pytest.mark.parametrize(
  "value, text",
  [
    (0, "0"), (1, "1"), (999.6, "1k"), (1234567, "1.23M"), (999_700, "1M"),
    (0.25, "0.25"), (2e12, "2T"), (None, "–"),
  ],
)  # fmt: skip
def test_humanise(value, text):
  assert report_data.humanise(value) == text


def test_humanise_units():
  assert report_data.humanise_bytes(65536) == "64 KiB"
  assert report_data.humanise_bytes(512) == "512 B"
  assert report_data.humanise_rate(3e-3) == "3e-3"
  assert report_data.humanise(7600, trim=False) == "7.60k"


def test_a_path_is_cut_at_the_top():
  cut = report_svg.under([0, 1, 2, 3, 4], [0, 20, 30, 0, 10], 10)
  assert cut == "M0.5 10.0L1.0 20.0L2.0 30.0L2.7 10.0M4.0 10.0"
  assert report_svg.under([0, 1], [5, 6], 10) == ""
  assert report_svg.under([0, 1], [15, 16], 10) == "M0.0 15.0L1.0 16.0"


def test_no_two_of_many_arms_look_alike():
  shapes = {(i % 8, report_svg.mark(i).split('d="')[1]) for i in range(24)}
  assert len(shapes) == 24  # by more than whether they are hollow
  marks = {(i % 8, report_svg.mark(i)) for i in range(32)}
  lines = {(i % 8, report_svg.LINES[i // 8]) for i in range(32)}
  assert len(marks) == len(lines) == 32
