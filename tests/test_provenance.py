"""The record of what was checked: fresh, stale, missing; as text and a page."""

import json
from pathlib import Path
from types import SimpleNamespace

import conftest
import pytest

import configs
from arch import registry
from train import provenance
from train.report import architectures

FIELDS = {"sizes": (3, 5)}
CASE = {
  "source": "their <code>",
  "fields": FIELDS,
  "errors": {"value": 1e-6, "gradient": 2e-6},
}


def test_fresh_stale_and_missing(tmp_path, monkeypatch):
  path = tmp_path / "provenance.json"
  assert provenance.status("mixers", "mamba", provenance.read(path)) == [
    "cases unverified",
    "start unverified",
    "tpu unverified",
  ]
  found = {("mixers", "mamba", "cases"): [CASE], ("mixers", "mamba", "tpu"): []}
  provenance.update(found, path)
  provenance.update({("mixers", "mamba", "start"): [{"a": 1}]}, path)
  record = provenance.read(path)
  assert provenance.status("mixers", "mamba", record) == ["tpu unverified"]
  assert provenance.status("mixers", "rglru", record)
  monkeypatch.setattr(provenance, "digest", lambda *args: "edited")
  assert "cases stale" in provenance.status("mixers", "mamba", record)


def test_what_holds_is_of_this_code_and_these_versions(tmp_path, monkeypatch):
  path = tmp_path / "provenance.json"
  case = "mixers", "mamba", "cases", FIELDS
  found = {("conversions", "llama", "cases"): [CASE]}
  found |= {("mixers", "mamba", "tpu"): ["v5e:2x4"]}
  provenance.update({("mixers", "mamba", "cases"): [CASE]} | found, path)
  record = provenance.read(path)
  assert provenance.holds(record, *case)
  assert provenance.holds(record, "conversions", "llama", "cases", FIELDS)
  assert provenance.holds(record, "mixers", "mamba", "tpu", "v5e:2x4")
  for other in (
    ("mixers", "mamba", "cases", {"sizes": (3, 6)}),
    ("mixers", "mamba", "tpu", "v6e:1x1"),
    ("mixers", "mamba", "start", FIELDS),
    ("mixers", "mamba2", "cases", FIELDS),
    ("conversions", "gpt2", "cases", FIELDS),
  ):
    assert not provenance.holds(record, *other)
  with monkeypatch.context() as patch:
    patch.setattr(provenance, "versions", lambda: {"jax": "0.1"})
    assert not provenance.holds(record, *case)
  monkeypatch.setattr(provenance, "digest", lambda *args: "edited")
  assert not provenance.holds(record, *case)


def test_a_suite_is_of_what_its_file_imports_and_of_all_of_arch():
  files = provenance.suite("combinations")
  assert {"tests/test_combinations.py", "tests/models.py"} <= files
  assert {"tests/conftest.py", "tests/test_vocab.py"} <= files
  assert {"arch/mixers/titans.py", "configs/titans.py"} <= files
  assert {"train/step.py", "train/optimizer.py"} <= files
  assert not any(file.startswith("launch/") for file in files)
  assert "train/step.py" not in provenance.suite("recurrence")


def test_a_suite_is_recorded_in_several_runs(tmp_path, monkeypatch):
  path, key = tmp_path / "provenance.json", ("suites", "vocab", "tests")
  for found in ("b", "a"):
    provenance.update({key: [found]}, path)
  assert provenance.holds(provenance.read(path), *key, "a")
  assert provenance.holds(provenance.read(path), *key, "b")
  monkeypatch.setattr(provenance, "digest", lambda *args: "edited")
  provenance.update({key: ["a"]}, path)
  assert not provenance.holds(provenance.read(path), *key, "b")


def test_of_a_recorded_suite_one_case_of_each_test_is_run(monkeypatch):
  made = []

  class Item:
    path = Path("tests/test_vocab.py")

    def __init__(self, name):
      self.name, self.originalname = name, name.partition("[")[0]
      if self.name != self.originalname:
        self.callspec = None
      self.marks = []

    def get_closest_marker(self, _):
      return self.marks[0].mark if self.marks else None

    def add_marker(self, mark):
      self.marks.append(mark)

  items = [Item(n) for n in ("one[a]", "one[b]", "two", "three[a]", "three[c]")]
  hook = SimpleNamespace(pytest_deselected=lambda items: made.extend(items))
  config = SimpleNamespace(getoption=lambda _: False, hook=hook)
  names = "one[a]", "one[b]", "two", "three[a]"
  monkeypatch.setattr(
    provenance, "holds", lambda record, *case: case[-1] in names
  )
  conftest.pytest_collection_modifyitems(config, items)
  assert [item.name for item in items] == ["one[a]", "three[a]", "three[c]"]
  assert [item.name for item in made] == ["one[b]", "two"]


def test_a_mixer_that_is_gone_takes_its_record_along(tmp_path):
  path = tmp_path / "provenance.json"
  record = provenance.read(path)
  record["mixers"]["perceptron"] = {}
  path.write_text(json.dumps(record))
  provenance.update({}, path)
  assert not provenance.read(path)["mixers"]


def test_a_record_of_another_format_is_refused(tmp_path):
  path = tmp_path / "provenance.json"
  path.write_text('{"format": 99}')
  with pytest.raises(ValueError, match="format 99, this version reads 1"):
    provenance.read(path)


def test_every_mixer_says_what_it_is():
  for name in registry.names("mixers"):
    about = provenance.described(registry.find("mixers", name))
    assert about["title"] and about["formula"] and about["papers"], name


def test_a_mixer_is_a_row_and_a_card(tmp_path):
  path, names = tmp_path / "provenance.json", ["attention", "hyena", "mamba"]
  provenance.update({("mixers", "mamba", "cases"): [CASE]}, path)
  table = provenance.rows(provenance.read(path), names)
  assert [row["name"] for row in table] == names
  for row in table:
    assert row["flops"] > 0 and min(row["state"].values()) > 0, row["name"]
  of = {row["name"]: row for row in table}
  assert of["mamba"]["recurrence"] == "diagonal"
  assert of["attention"]["recurrence"] == "attention"
  assert of["hyena"]["recurrence"] == "convolution"
  text, page = architectures.text(table), architectures.page(table)
  for name in names:
    assert name in text and f'<h2 id="{name}">' in page
  assert "unverified" in text and "2e-06" in text
  assert "their &lt;code>" in page or "their &lt;code&gt;" in page


def test_a_record_is_of_all_code_that_a_mixer_imports():
  found = provenance.sources("arch.mixers.deltaproduct")
  assert {
    "arch/mixers/deltaproduct.py",
    "arch/mixers/gated_deltanet.py",
    "arch/recurrence/delta.py",
    "arch/recurrence/chunks.py",
    "arch/layers.py",
  } <= found
  assert not any("attend" in file or "lm.py" in file for file in found)


def test_code_is_what_an_arm_trains_by(monkeypatch):
  """Its mixers, channels, vocabulary, what those import, and the step."""
  read = []
  monkeypatch.setattr(provenance, "_hash", lambda files: read.extend(files))
  provenance.code(configs.load("griffin").model)
  assert {
    "arch/mixers/rglru.py",
    "arch/mixers/attention.py",
    "arch/recurrence/diagonal.py",
    "arch/channels/geglu.py",
    "arch/vocab/full.py",
    "arch/lm.py",
    "train/step.py",
    "train/optimizer.py",
  } <= set(read)
  assert not any("mamba" in file or "experts" in file for file in read)


def test_the_verdict_says_what_was_held_against_what():
  rows = [
    {"name": "a", "wrong": [], "sources": ["transformers AMixer"]},
    {"name": "b", "wrong": ["tpu stale"], "sources": ["a loop of arXiv 1.2"]},
    {"name": "c", "wrong": ["cases stale"], "sources": ["fla naive_c"]},
    {"name": "d", "wrong": ["cases unverified"], "sources": []},
  ]
  said = "1 held against the code of others, 1 against loops over the equations"
  assert said in architectures.verdict(rows)
  assert "papers (b), 2 against nothing" in architectures.verdict(rows)
  assert architectures.verdict(rows[:1]) == (
    "1 token mixer: 1 held against the code of others; no gaps."
  )


def test_blocks_around_chunks_are_code_of_an_arm():
  model = configs.load("hnet").copy_and_resolve_references().model.to_dict()
  found = provenance.dependencies(model)
  assert {f"arch/{name}.py" for name in ("mixers/mamba2", "body/hnet")} <= found
  model["bodies"]["hnet"]["outer"] = None
  assert "arch/mixers/mamba2.py" not in provenance.dependencies(model)
