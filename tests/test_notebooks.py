"""The notebooks: each is its .py file, and runs from top to bottom."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from models import ROOT

jupytext = pytest.importorskip("jupytext", reason="pip install .[notebooks]")
nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

FOLDER = ROOT / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
# in place of the cell of parameters: a budget of seconds
SMALL = {
  "add_an_architecture": "ARCHS, PARAMS, TOKENS = 'leaky,mingru', '30K', '20K'",
  "compare": "SMALL = True\nMORE = '--lrs=1e-2,3e-2 --seeds=2'",
  "train": "SMALL, CONFIG = True, 'mingru'",
}
SMALLER = ('"300K"', '"20K"')  # of what SMALL means


def read(name, ending):
  return jupytext.read(FOLDER / f"{name}.{ending}")


def test_every_notebook_is_tried():
  assert (
    NAMES == sorted(SMALL) == sorted(p.stem for p in FOLDER.glob("*.ipynb"))
  )


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_its_file(name):
  """jupytext --to ipynb notebooks/*.py makes them anew."""
  ours, theirs = (
    [
      (c.cell_type, c.source, c.metadata.get("tags"))
      for c in read(name, e).cells
    ]
    for e in ("py", "ipynb")
  )
  assert ours == theirs
  made = read(name, "ipynb")
  assert not any(cell.get("outputs") for cell in made.cells)
  # Colab starts a TPU; a pinned image would be a CPU's on Kaggle
  assert made.metadata.accelerator == "TPU"
  assert made.metadata.colab.gpuType == "V5E1"
  assert "kaggle" not in made.metadata


def test_links_lead_to_files():
  pages = [ROOT / "README.md", *FOLDER.glob("*.ipynb")]
  found = [
    (page, link)
    for page in pages
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8"))
    if not link.startswith("http")
  ]
  assert len(found) > 3
  for page, link in found:
    assert (page.parent / link).exists(), (page.name, link)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
  """The lab as git would clone it, changes included."""
  path = tmp_path_factory.mktemp("clone")
  listed = subprocess.run(
    ["git", "-C", ROOT, "ls-files", "-co", "--exclude-standard"],
    capture_output=True,
    text=True,
    check=True,
  )
  for name in listed.stdout.split():
    if (ROOT / name).is_file():
      (path / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(ROOT / name, path / name)
  return path


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name, copy, monkeypatch):
  monkeypatch.setenv(
    "PATH", f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
  )
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  monkeypatch.delenv("PYTHONPATH", raising=False)
  monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
  book = read(name, "ipynb")
  tagged = ["parameters" in c.metadata.get("tags", []) for c in book.cells]
  given = nbformat.v4.new_code_cell(SMALL[name])
  book.cells.insert(tagged.index(True) + 1, given)
  for cell in book.cells:
    cell.source = cell.source.replace(*SMALLER)
  resources = {"metadata": {"path": str(copy / "notebooks")}}
  nbclient.NotebookClient(book, timeout=600, resources=resources).execute()
  said = {
    cell.source: "".join(out.get("text", "") for out in cell.outputs)
    for cell in book.cells
    if cell.cell_type == "code"
  }
  # it is a copy, and what is installed must not become it
  assert "install -q -e" not in "".join(said)
  assert "import jax" not in "".join(c for c in said if "file.write" not in c)
  wrong = [
    text
    for text in said.values()
    if re.search(r"(^|\r) *(error:|Traceback)", text, re.M)
  ]
  assert not wrong
  shown = str([cell.get("outputs") for cell in book.cells])
  if name == "train":
    assert "image/png" in shown
    assert "bits_per_byte" in next(
      t for c, t in said.items() if "evaluate" in c
    )
    assert len(next(t for c, t in said.items() if "generate" in c)) > 100
  else:
    assert "<iframe srcdoc=" in shown and "&lt;svg" in shown
    assert (copy / "runs").glob("*/leaderboard.csv")
  if name == "add_an_architecture":
    tested = next(text for cell, text in said.items() if "pytest" in cell)
    assert re.search(r"\d+ passed", tested) and "failed" not in tested


def test_without_an_accelerator_it_says_what_to_choose(copy):
  book = read("compare", "ipynb")
  sources = [c.source for c in book.cells if c.cell_type == "code"]
  (choice,) = [s for s in sources if "platform.sure()" in s]

  class platform:
    sure = staticmethod(dict)

  with pytest.raises(ValueError, match="no TPU or GPU: choose one.*SMALL = Tr"):
    exec(choice, {"platform": platform, "SMALL": False})


def test_the_mixer_is_that_of_contributing():
  text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
  blocks = re.findall(r"^```python\n(.*?)\n```$", text, re.M | re.S)
  cells = [c.source for c in read("add_an_architecture", "ipynb").cells]
  written = re.findall(r"'''\\\n(.*?)\n'''", "".join(cells), re.S)
  assert written == blocks
