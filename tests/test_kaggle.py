"""What is sent to Kaggle, by a stand-in for its tool, and run as there."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from models import ROOT

from launch import command as launch_command
from train import kaggle, platform, sites

ON_KAGGLE = {sites.KAGGLE: "Batch"}
COMMAND = ("python", "-m", "launch.architectures", "--archs=mamba2")
TOOL = """#!{python}
import json, os, pathlib, sys
folder = pathlib.Path({folder!r})
with open(folder / "calls", "a") as file:
  print(json.dumps(sys.argv[1:]), file=file)
answer = json.loads((folder / "answers").read_text())
words = answer.get(" ".join(sys.argv[1:3]), {{}})
for name, text in words.get("files", {{}}).items():
  path = pathlib.Path(sys.argv[sys.argv.index("-p") + 1], name)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
print(words.get("out", ""))
print(words.get("err", ""), file=sys.stderr)
sys.exit(words.get("code", 0))
"""
PUSHED = "Kernel version 1 successfully pushed.  Please check progress at URL"


@pytest.fixture
def tool(tmp_path, monkeypatch):
  """Sets what the stand-in answers; `tool.calls()` is what it was asked."""
  folder = tmp_path / "bin"
  folder.mkdir()
  file = folder / "kaggle"
  file.write_text(TOOL.format(python=sys.executable, folder=str(folder)))
  file.chmod(0o755)
  monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
  monkeypatch.chdir(tmp_path)
  answers = {
    "config view": {"out": "Configuration values from /h\n- username: ada"},
    "kernels push": {"out": PUSHED},
    "kernels status": {"out": status("COMPLETE")},
  }

  def answer(words=None, **fields):
    answers.update({words: fields} if words else {})
    (folder / "answers").write_text(json.dumps(answers))

  def calls():
    lines = (folder / "calls").read_text().splitlines()
    return [json.loads(line) for line in lines]

  answer()
  answer.calls = calls
  return answer


def status(word):
  return f'ada/small-lm has status "KernelWorkerStatus.{word}"'


@pytest.fixture
def unchecked(monkeypatch):
  """Without the process that reads a command's flags."""
  monkeypatch.setattr(kaggle, "check", lambda words: True)


@pytest.fixture
def small(monkeypatch):
  """Without packing the checkout."""
  monkeypatch.setattr(kaggle, "packed", lambda: b"lab")


def metadata(folder="kaggle-run"):
  return json.loads(Path(folder, kaggle.META).read_text())


def test_a_push_is_a_folder_that_kaggle_takes(tool, unchecked, small):
  lines = kaggle.push("kaggle-run", COMMAND, "small-lm")
  assert lines[-1] == PUSHED
  assert metadata() == {
    "id": "ada/small-lm",
    "title": "small-lm",
    "code_file": "lab.py",
    "language": "python",
    "kernel_type": "script",
    "is_private": True,
    "enable_internet": True,
    "machine_shape": "TpuV5E8",
    "kernel_sources": [],
  }
  asked = ["-p", "kaggle-run", "--accelerator", "TpuV5E8"]
  assert tool.calls()[-1] == ["kernels", "push", *asked]
  script = Path("kaggle-run", "lab.py").read_text()
  assert '"tpu", 8.5, START' in script
  compile(script, "lab.py", "exec")
  assert kaggle.resume("kaggle-run")[-1] == PUSHED
  assert metadata()["kernel_sources"] == ["ada/small-lm"]
  assert tool.calls()[-1] == ["kernels", "push", *asked]
  assert Path("kaggle-run", "lab.py").read_text() == script
  with pytest.raises(ValueError, match="kaggle-run is that of ada/small-lm"):
    kaggle.push("kaggle-run", COMMAND, "other-lm")


def test_a_cpu_is_asked_for_by_leaving_it_out(tool, unchecked, small):
  kaggle.push("kaggle-run", COMMAND, "small-lm", "eve", "none")
  assert tool.calls() == [["kernels", "push", "-p", "kaggle-run"]]
  assert metadata()["machine_shape"] == "" and "eve/" in metadata()["id"]
  kaggle.resume("kaggle-run")
  assert tool.calls()[-1] == tool.calls()[0]


def on_kaggle(folder, script):
  """Runs a script as Kaggle would, with a folder for its /."""
  text = Path(script).read_text()
  assert text.count('ROOT = "/"') == 1
  working = folder / "kaggle" / "working"
  working.mkdir(parents=True)
  (folder / "lab.py").write_text(
    text.replace('ROOT = "/"', f"ROOT = {str(folder)!r}")
  )
  env = {**os.environ, **ON_KAGGLE, "JAX_PLATFORMS": "cpu"}
  env.pop("PYTHONPATH", None)
  return subprocess.run(
    [sys.executable, "../../lab.py"],
    cwd=working,
    env=env,
    capture_output=True,
    text=True,
    timeout=240,
  )


def left(folder):
  runs = folder / "kaggle" / "working" / "runs"
  return {
    str(path.relative_to(runs)): path.read_bytes()
    for path in runs.rglob("*")
    if path.is_file()
  }


@pytest.fixture
def ungit(monkeypatch):
  """The lab's files, whether git knows them or not."""
  files = ["pyproject.toml", "README.md", "docs/provenance.json"]
  for folder in kaggle.CODE:
    found = (ROOT / folder).rglob("*.[ph][yt]*")
    files += [str(p.relative_to(ROOT)) for p in found if p.suffix != ".pyc"]
  monkeypatch.setattr(kaggle, "listed", lambda *words: [] if words else files)


def test_a_session_keeps_runs_and_a_later_one_has_them(tool, ungit, tmp_path):
  words = (*COMMAND, "--out=runs/page.html")
  kaggle.push("kaggle-run", words, "small-lm", accelerator="none")
  first = tmp_path / "first"
  done = on_kaggle(first, "kaggle-run/lab.py")
  assert done.returncode == 0, done.stderr
  assert "site          Kaggle, batch" in done.stdout  # the doctor's
  assert "mamba2" in done.stdout
  kept = left(first)
  assert kept.keys() == {"page.html"} and b"mamba2" in kept["page.html"]
  # the lab itself is none of what is kept
  assert [p.name for p in (first / "kaggle/working").iterdir()] == ["runs"]

  run = first / "kaggle/working/runs/compare/runs/mamba2"
  run.mkdir(parents=True)
  (run / "state").write_bytes(bytes(range(256)))
  second = tmp_path / "second"
  inputs = second / "kaggle/input/notebooks/ada/small-lm"
  inputs.mkdir(parents=True)
  (first / "kaggle/working/runs").rename(inputs / "runs")
  kaggle.resume("kaggle-run")
  script = Path("kaggle-run", "lab.py").read_text()
  # the doctor, of whom the first heard, refuses this: seconds less
  script = script.replace('"cpu", None', '"abacus", None')
  (tmp_path / "again.py").write_text(script)
  done = on_kaggle(second, tmp_path / "again.py")
  assert done.returncode == 1 and "abacus" in done.stderr, done.stderr
  assert "compare is brought back: 1 files" in done.stdout
  assert left(second) == {
    **kept,
    "compare/runs/mamba2/state": bytes(range(256)),
  }


def test_a_machine_of_another_kind_trains_nothing(tmp_path, monkeypatch):
  """Kaggle has given a CPU where a TPU was asked for."""
  monkeypatch.setenv(sites.KAGGLE, "Batch")
  ran = []

  def run(words, cwd, env):
    ran.append(words[2])
    code = 1 if "--platform=tpu" in words else len(ran) - 2
    return subprocess.CompletedProcess(words, code)

  monkeypatch.setattr(kaggle.subprocess, "run", run)
  monkeypatch.setattr(sites, "missing", lambda: [])
  words = ("-m", "launch.compare")
  assert kaggle.session(words, "tpu", 1.0, 0.0, tmp_path) == 1
  assert ran == ["launch.doctor"]
  assert kaggle.session(words, "cpu", 1.0, 0.0, tmp_path) == 1  # its own
  assert ran[1:] == ["launch.doctor", "launch.compare"]


def test_a_session_installs_what_is_missing_and_says_when_to_stop(
  tmp_path, monkeypatch
):
  monkeypatch.setenv(sites.KAGGLE, "Batch")
  ran = []

  def run(words, cwd, env):
    ran.append((words[1:], cwd, env["PYTHONPATH"].split(os.pathsep)[0]))
    return subprocess.CompletedProcess(words, 0)

  monkeypatch.setattr(kaggle.subprocess, "run", run)
  monkeypatch.setattr(sites, "missing", lambda: ["tqdm"])
  monkeypatch.setattr(kaggle.time, "monotonic", lambda: 160.0)
  words = ("-m", "launch.compare")
  assert kaggle.session(words, "cpu", 1.0, 100.0, tmp_path) == 0
  (pip, *_), _, (last, *where) = ran
  assert pip == ["-m", "pip", "install", "-q", "-e", str(ROOT)]
  assert last == [*words, "--until=3540s"]
  assert where == [tmp_path / "kaggle/working", str(ROOT)]


def test_what_is_missing_is_of_the_projects_own_list(tmp_path, monkeypatch):
  monkeypatch.setattr(platform, "ROOT", tmp_path)
  (tmp_path / "pyproject.toml").write_text(
    '[project]\ndependencies = ["jax>=0.7", "no_such_package>=1; x == \'y\'"]'
  )
  assert sites.missing() == ["no_such_package"]


def test_results_are_where_a_site_keeps_them(tmp_path):
  kept = sites.results(ON_KAGGLE, tmp_path)
  assert kept == tmp_path / "kaggle/working/runs"
  colab = {sites.COLAB: "release-colab_20260819"}
  assert sites.results(colab, tmp_path) == Path("runs")
  drive = tmp_path / "content/drive/MyDrive"
  drive.mkdir(parents=True)
  assert sites.results(colab, tmp_path) == drive / "lab/runs"
  assert sites.results({}, tmp_path) == Path("runs")


def test_programs_are_kept_beside_the_results(tmp_path):
  kept = sites.programs(ON_KAGGLE, tmp_path)
  assert kept == tmp_path / "kaggle/working/programs"
  assert sites.programs({}, tmp_path) is None
  write = writer(tmp_path)
  write("input/a/programs/tpu/old", "a")
  write("input/a/programs/tpu/both", "a")
  write("input/a/runs/other/programs/tpu/a-runs-own", "a")
  write("input/b/programs/tpu/both", "b")
  write("working/programs/tpu/new", "new")
  sites.bring_back(ON_KAGGLE, tmp_path)
  found = {f.name: f.read_text() for f in (kept / "tpu").iterdir()}
  assert found == {"old": "a", "both": "a", "new": "new"}


def writer(folder):
  def write(name, text):
    path = folder / "kaggle" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)

  return write


def test_what_is_there_is_not_brought_back(tmp_path):
  write = writer(tmp_path)
  write("input/a/runs/compare/runs/x/state", "old")
  write("input/a/runs/compare/later", "old")
  write("input/a/runs/other/state", "old")
  write("input/a/code.log", "old")
  write("working/runs/compare/runs/x/state", "new")
  write("working/runs/other.new/cut", "short")
  assert sites.bring_back({}, tmp_path) == []
  there, brought = sites.bring_back(ON_KAGGLE, tmp_path)
  assert "runs/compare is there already" in there
  assert brought.endswith("runs/other is brought back: 1 files")
  assert left(tmp_path) == {
    "compare/runs/x/state": b"new",
    "other/state": b"old",
  }
  write("input/b/runs/other/state", "which")
  with pytest.raises(ValueError, match="are of one name: detach one"):
    sites.bring_back(ON_KAGGLE, tmp_path)


def test_a_pull_tells_how_to_go_on(tool, unchecked, small):
  kaggle.push("kaggle-run", COMMAND, "small-lm")
  files = {"small-lm.log": "", "runs/a/results.json": "{}", "runs/b/lock": ""}
  tool("kernels output", files=files)
  lines = kaggle.pull("kaggle-run")
  output = ["kernels", "output", "ada/small-lm", "-p", "runs/small-lm.new"]
  assert tool.calls()[-1] == [*output, "--page-size", "200"]
  assert lines[:2] == ["runs/small-lm/runs/a", "runs/small-lm/runs/b"]
  assert lines[2].endswith(
    "launch.compare --report=runs/small-lm/runs/a "
    "--workdir=runs/small-lm/report"
  )
  assert lines[3].endswith("launch.kaggle resume --folder=kaggle-run")
  assert kaggle.status("kaggle-run") == [
    status("COMPLETE"),
    "https://www.kaggle.com/code/ada/small-lm",
  ]
  with pytest.raises(ValueError, match="runs/small-lm is there already"):
    kaggle.pull("kaggle-run")
  tool("kernels output", files={"small-lm.log": ""})
  with pytest.raises(ValueError, match="left no runs: its log is in out"):
    kaggle.pull("kaggle-run", "out")
  assert Path("out", "small-lm.log").exists()


FLAGS = ("name", "user", "folder", "accelerator", "hours", "out")


@pytest.fixture(scope="module")
def launched():
  """launch.kaggle, some of whose flags other commands have as well."""
  flags = launch_command.flags.FLAGS
  aside = {name: flags[name] for name in FLAGS if name in flags}
  flags.remove_flag_values(aside)
  yield importlib.import_module("launch.kaggle")
  flags.remove_flag_values(FLAGS)
  for name, flag in aside.items():
    flags[name] = flag
  del sys.modules["launch.kaggle"], sys.modules["launch"].kaggle


@pytest.fixture
def call(launched, capsys):
  """The command in this process: its exit code, and what it says on stderr."""

  def run(*words):
    flags = launch_command.flags.FLAGS
    flags.unparse_flags()
    for name in FLAGS:
      flags[name].unparse()
    try:
      argv = launch_command.parse(["kaggle", *words], launched.main)
    except ValueError as error:
      return 1, f"error: {error}"
    code = launch_command.guard(launched.main, prepared=False)(argv)
    start, *lines = capsys.readouterr().err.splitlines()
    return code, "\n".join(lines)

  return run


PUSH = ("push", "--name=small-lm")
AFTER = ("--", *COMMAND)


@pytest.mark.parametrize(
  ("words", "error"),
  [
    ((), "none is not one of push, status, pull, resume"),
    (("start",), "start is not one of push"),
    (("status", "now"), "not flags: now"),
    (PUSH, "no command to run: give it after --"),
    ((*PUSH, "--", "ls"), "'ls' is not python -m launch.COMMAND"),
    ((*PUSH, "--", "python", "-m", "launch.no"), "launch.no does not run"),
    ((*PUSH, "--", "python", "-m", "launch.kaggle"), "launch.kaggle does not"),
    ((*PUSH, *AFTER, "--achs=x"), "launch.architectures: Unknown command line"),
    ((*PUSH, *AFTER, "x"), "launch.architectures: not flags: x"),
    (("push", *AFTER), "--name=: Kaggle wants 5 to 50"),
    (("push", "--name=abcd", *AFTER), "--name=abcd: Kaggle wants"),
    (("push", "--name=Small_LM", *AFTER), "--name=Small_LM: Kaggle wants"),
    (("push", f"--name={'a' * 51}", *AFTER), "Kaggle wants 5 to 50"),
    ((*PUSH, "--accelerator=v5e", *AFTER), "--accelerator=v5e: TpuV5E8"),
    ((*PUSH, "--hours=0", *AFTER), "hours=0: 0 is not a number above 0"),
    ((*PUSH, "--folder=bin", *AFTER), "bin holds answers, which launch.kaggle"),
    (("resume",), "nothing was pushed from kaggle-run: push first"),
    (("pull",), "nothing was pushed from kaggle-run: push first"),
  ],
)
def test_what_is_wrong_is_one_line(words, error, tool, small, call):
  code, said = call(*words)
  assert code == 1 and said.startswith("error: ") and "\n" not in said
  assert error in said
  assert not Path("kaggle-run").exists()


LOGIN = "Authentication required to call the Kaggle API.\n\nFirst, you will"


@pytest.mark.parametrize(
  ("action", "asked", "fields", "error"),
  [
    (PUSH, "config view", {"out": LOGIN, "code": 1}, "config view: Authentic"),
    (PUSH, "config view", {"out": "- username: None"}, "not know its user"),
    (
      PUSH,
      "kernels push",
      {"out": "Kernel push error: Notebook not found"},
      "did not take it: Kernel push error: Notebook not found",
    ),
    (
      ("resume",),
      "kernels push",
      {"out": f"['ada/x'] are not valid kernel sources\n{PUSHED}"},
      "it runs without what it left before",
    ),
    (
      ("status",),
      "kernels status",
      {"err": "Warning\n403 Forbidden", "code": 1},
      "kernels status: 403 Forbidden (kaggle auth login",
    ),
    (
      ("pull",),
      "kernels status",
      {"out": status("RUNNING")},
      "ada/small-lm has not ended (RUNNING), and it leaves its output when",
    ),
    (
      ("resume",),
      "kernels status",
      {"out": status("QUEUED")},
      "ada/small-lm has not ended (QUEUED), and its output is not whole",
    ),
    (("resume",), "kernels status", {"out": "?"}, "has not ended (?)"),
  ],
)
def test_the_tools_own_words_are_shown(
  action, asked, fields, error, tool, unchecked, small, call
):
  if action != PUSH:
    kaggle.push("kaggle-run", COMMAND, "small-lm")
  tool(asked, **fields)
  code, said = call(*action, *(AFTER if action == PUSH else ()))
  assert code == 1 and said.startswith("error: ") and "\n" not in said
  assert error in said


def test_without_the_tool_it_is_named(tmp_path, monkeypatch, call, small):
  monkeypatch.setenv("PATH", str(tmp_path))
  code, said = call(*PUSH, "--folder=x", *AFTER)
  assert (code, said) == (
    1,
    "error: there is no command kaggle: pip install kaggle",
  )


def test_only_what_git_knows_is_sent(tmp_path, monkeypatch):
  monkeypatch.setattr(platform, "ROOT", tmp_path)
  with pytest.raises(ValueError, match=f"{tmp_path} is not in git"):
    kaggle.packed()
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs" / "mine.py").touch()
  (tmp_path / "kaggle.json").write_text("secret")
  for words in (("init", "-q"), ("add", "configs/mine.py")):
    subprocess.run(["git", "-C", tmp_path, *words], check=True)
  (tmp_path / "configs" / "mine.py").write_text("changed = 1")
  with kaggle.tarfile.open(fileobj=kaggle.io.BytesIO(kaggle.packed())) as file:
    (entry,) = file.getmembers()
    assert entry.name == "configs/mine.py" and entry.uname == ""
    assert file.extractfile(entry).read() == b"changed = 1"
  (tmp_path / "configs" / "new.py").touch()
  with pytest.raises(ValueError, match="configs/new.py is not in git and"):
    kaggle.packed()


def test_only_commands_that_can_are_told_when_to_stop():
  words = ("python", "-m", "launch.compare", "--archs=mamba2")
  assert kaggle.check(words)
  assert not kaggle.check((*words, "--until=2h"))
  assert not kaggle.check(COMMAND)


def test_words_after_the_flags_are_another_commands(launched, call):
  words = ["--config=nosuch", "--help", "--name=other"]
  left = launch_command.parse(["x", *PUSH, "--", *words], launched.main)
  assert left == ["x", "push", *words]
  assert launched.NAME.value == "small-lm"
