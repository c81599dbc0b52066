"""What the README and CONTRIBUTING say is run, out of their own text."""

import importlib
import json
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
import yaml
from models import ROOT

import configs
from arch import mixers


def read(page):
  return (ROOT / page).read_text("utf-8")


def blocks(file):
  """The Python of a page, block by block."""
  return re.findall(r"^```python\n(.*?)^```$", read(file), re.M | re.S)


@pytest.fixture
def leaky(tmp_path, monkeypatch):
  """The two files of CONTRIBUTING beside those that are there."""
  texts = zip((mixers, configs), blocks("CONTRIBUTING.md"), strict=True)
  for package, text in texts:
    folder = tmp_path / package.__name__
    folder.mkdir()
    (folder / "leaky.py").write_text(text)
    found = [*package.__path__, str(folder)]
    monkeypatch.setattr(package, "__path__", found)
  yield "leaky"
  for package in (mixers, configs):
    sys.modules.pop(f"{package.__name__}.leaky", None)


def test_the_mixer_of_contributing_has_the_properties(leaky):
  suite = importlib.import_module("test_properties")
  suite.test_full_size_is_counted_without_arrays(leaky)
  suite.test_causal_and_connected(leaky)
  suite.test_nothing_before_a_reset_matters(leaky)
  suite.test_stepping_is_one_call(leaky)
  suite.test_every_parameter_gets_a_gradient(leaky)


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "book.txt").write_text("to be or not to be\n" * 600)
  (text,) = blocks("README.md")
  names = {}
  exec(text, names)
  params, *costs = map(float, capsys.readouterr().out.split())
  assert params == names["sizes"].params and min(costs) > 0
  assert 0 < names["score"].bits_per_byte < 8
  assert names["logits"].shape == (1, 4, 256)


PAGES = ["README.md", "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

PARSE = """
import importlib, json, sys
from absl import flags
from launch import command
shared = set(flags.FLAGS)
for name, *words in json.load(sys.stdin):
  importlib.import_module(f"launch.{name}")
  try:
    sys.argv = command.plain([name, *words])  # ml_collections looks there
    flags.FLAGS(sys.argv)
  except (ValueError, flags.Error) as error:
    print(f"launch.{name} {' '.join(words)}: {error}")
  for flag in set(flags.FLAGS) - shared:
    delattr(flags.FLAGS, flag)
  for module in [m for m in sys.modules if m.startswith("launch.")]:
    if module != "launch.command":  # one may have the flags of another
      del sys.modules[module]
      delattr(sys.modules["launch"], module.removeprefix("launch."))
"""


def project():
  return tomllib.loads(read("pyproject.toml"))["project"]


def commands():
  """What follows `python -m launch.` on the pages, in words."""
  for page in PAGES:
    text = read(page).replace("\\\n", "")
    for found in re.findall(r"python -m launch\.(\w[^`\n]*)", text):
      yield shlex.split(found)


def test_every_command_of_the_pages_has_its_flags():
  told = list(commands())
  assert {name for name, *_ in told} == {
    path.stem for path in (ROOT / "launch").glob("[a-z]*.py")
  } - {"command"}
  done = subprocess.run(
    [sys.executable, "-c", PARSE],
    input=json.dumps(told),
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert (done.stdout, done.returncode) == ("", 0), done.stderr


def test_every_arm_of_the_pages_is_a_config():
  words = [word for told in commands() for word in told]
  given = [w.removeprefix("--archs=") for w in words if w.startswith("--archs")]
  arms = {arm for arms in given for arm in arms.split(",")}
  assert len(arms) > 9
  configs.several(arms - {"NAME", "all"})


def extras(text):
  """Those that the text installs, as in `.[test,tpu]`."""
  found = re.findall(r"\.\[([\w,]+)\]", text)
  return {extra for given in found for extra in given.split(",")}


def test_ci_installs_what_the_pages_name():
  known = set(project()["optional-dependencies"])
  assert extras("".join(map(read, PAGES))) <= known
  # gigabytes, for a GPU that CI has not
  assert known - extras(read(".ci/run")) == {"cuda"}


def test_the_citation_is_of_this_version():
  citation, own = yaml.safe_load(read("CITATION.cff")), project()
  # what schema 1.2.0 requires
  assert citation["cff-version"] == "1.2.0"
  assert citation["message"] and citation["authors"]
  assert citation["title"].startswith(own["name"])
  assert citation["version"] == own["version"]
  assert citation["license"] == own["license"]["text"]
