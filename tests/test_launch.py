"""The commands, as a user runs them: in processes of their own."""

import datetime
import importlib
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from absl import flags
from models import ROOT

from launch import __main__ as listing
from launch import command as launch_command
from train import compare, metrics, platform
from train.plan import Plan
from train.step import Step


def command(name, *words, cwd=ROOT, **fields):
  env = {**os.environ, "JAX_PLATFORMS": "cpu"}
  env.pop("XLA_FLAGS", None)
  return subprocess.Popen(
    [sys.executable, "-m", f"launch.{name}", *map(str, words)],
    cwd=cwd,
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    **fields,
  )


def run(name, *words):
  process = command(name, *words)
  text, _ = process.communicate(timeout=240)
  return process.returncode, text


pytestmark = [
  pytest.mark.xdist_group("launch"),
  # ml_collections reads a config by what Python 3.12 lost
  pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("text")
  for split, n in (("train", 400), ("valid", 30), ("test", 30)):
    (path / f"{split}.txt").write_text("to be or not to be\n" * n)
  return path


def training(folder, path, *words):
  return (
    "--config=configs/mingru.py:tiny",
    f"--config.data.name=text:{folder}",
    "--config.train.steps=300",
    "--config.train.length=57",
    "--config.train.warmup=5",
    "--config.train.eval_every=100",
    "--config.train.save_every=20",
    "--config.train.eval_bytes=200",
    "--set=bias=True",
    f"--workdir={path}",
    *words,
  )


def numbers(path):
  return [
    {k: v for k, v in line.items() if k != "seconds"}
    for line in metrics.read(path)
  ]


def until(path, step):
  """Waits until a run has logged a step."""
  for _ in range(1200):
    if (path / "metrics.jsonl").exists() and any(
      line["step"] >= step for line in metrics.read(path)
    ):
      return
    time.sleep(0.1)
  raise TimeoutError(f"{path} logged no step {step}")


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
  path = tmp_path_factory.mktemp("runs") / "whole"
  code, text = run("train", *training(folder, path))
  assert code == 0, text
  return path, text


@pytest.mark.smoke
def test_train_then_evaluate_then_generate(trained):
  path, text = trained
  assert re.search(r"step 300 of 300, valid nats [\d.]+, bits_per_byte", text)
  code, text = run("evaluate", f"--workdir={path}", "--chunk=64")
  found = re.search(r"bits_per_byte ([\d.]+) over 570 bytes", text)
  assert code == 0 and float(found[1]) < 1, text
  code, text = run(
    "generate", f"--workdir={path}", "--prompt=to be", "--bytes=30"
  )
  assert code == 0 and "or not to be" in text, text


def test_kill_9_and_the_same_command_again(trained, folder, tmp_path):
  whole, _ = trained
  path = tmp_path / "run"
  process = command("train", *training(folder, path))
  until(path, 30)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  code, text = run("train", *training(folder, path))
  assert code == 0, text
  assert numbers(path) == numbers(whole)


def test_sigterm_saves_and_says_how_to_go_on(folder, tmp_path):
  path = tmp_path / "run"
  process = command("train", *training(folder, path))
  until(path, 10)
  other = command("train", *training(folder, path))
  text, _ = other.communicate(timeout=120)
  assert other.returncode == 1
  assert re.search(r"error: .* is in use by process \d+", text), text
  process.send_signal(signal.SIGTERM)
  text, _ = process.communicate(timeout=120)
  assert process.returncode == 0, text
  assert re.search(r"saved; go on with: python -m launch.train --config", text)


def test_a_time_that_is_up_stops_a_run_and_a_comparison(folder, tmp_path):
  path = tmp_path / "run"
  code, text = run("train", *training(folder, path), "--until=0.01s")
  assert code == 0 and "time is up" in text, text
  assert "nothing saved yet; start again with: python -m launch.train" in text
  words = f"--data=text:{folder}", f"--workdir={tmp_path / 'compare'}"
  words += "--archs=attention", "--params=60K", "--tokens=8K", "--eval_bytes=1K"
  code, text = run("compare", *words, "--until=0.01s")
  assert code == 0 and "stopped; go on with: python -m launch.compare" in text


@pytest.mark.parametrize(
  ("text", "seconds"),
  [
    ("8h", 28_800),
    ("90min", 5400),
    ("1.5 h", 5400),
    ("30s", 30),
    ("2d", 172_800),
  ],
)
def test_a_time_from_now(text, seconds):
  assert launch_command.Until().parse(text) == seconds


def test_a_time_of_the_clock_is_the_next_one():
  now = datetime.datetime.now()
  for ahead, least in ((5, 240), (-5, 86_400 - 360)):
    clock = now + datetime.timedelta(minutes=ahead)
    left = launch_command.Until().parse(f"{clock:%H:%M}")
    assert least - 5 < left <= least + 60, (ahead, left)


@pytest.mark.parametrize("text", ["soon", "0h", "-3h", "8", "25:00", "nan h"])
def test_what_is_no_time_is_refused(text):
  with pytest.raises(
    ValueError, match="is no time such as 8h, 90min, or 23:30"
  ):
    launch_command.Until().parse(text)


@pytest.mark.parametrize(
  ("words", "error"),
  [
    (
      ("compare", "--archs=gated_deltnet", "--workdir={tmp}"),
      "unknown architecture 'gated_deltnet': did you mean 'gated_deltanet'",
    ),
    (
      ("compare", "--platform=tpu", "--workdir={tmp}"),
      "--platform=tpu: no TPU was found",
    ),
    (
      ("train", "--config=configs/mamba2.py:tiny", "--config.model.dmi=3"),
      "no field --config.model.dmi: did you mean 'model.dim'",
    ),
    (
      (
        "train",
        "--config=configs/mamba2.py:tiny",
        "--config.model.vocab.scale=2",
      ),
      "can be such a flag; give --set=model.vocab.scale=2",
    ),
    (("bench", "--out={tmp}/none/bench.json"), "none/bench.json: No such file"),
    (("evaluate", "--wokdir={tmp}"), "Unknown command line flag 'wokdir'"),
  ],
)
def test_a_mistake_is_one_line(words, error, tmp_path):
  code, text = run(*(word.format(tmp=tmp_path) for word in words))
  assert code == 1
  lines = [line for line in text.splitlines() if line.startswith("error: ")]
  assert len(lines) == 1 and error in lines[0], text
  assert "Traceback" not in text


@pytest.mark.parametrize(
  ("text", "number"),
  [
    ("500K", 500_000),
    ("1.5m", 1_500_000),
    (".5G", 500_000_000),
    ("7B", 7_000_000_000),
    ("1e6", 1_000_000),
    ("500_000", 500_000),
    (" 7 ", 7),
  ],
)
def test_numbers(text, number):
  assert launch_command.whole(text) == number


NUMBERS = ("", "abc", "-1", "nan", "inf", "1e400", "9" * 20, "0.5", "5KB")


@pytest.fixture(scope="module")
def call(tmp_path_factory):
  """Runs a command here; trains and times nothing. Answers its stderr."""
  folder = tmp_path_factory.mktemp("called")
  patch = pytest.MonkeyPatch()
  patch.chdir(ROOT)
  patch.setattr(platform, "setup", lambda *args: None)

  class Reached(Exception):
    """All that was given is in order."""

  def reached(*args, **fields):
    raise Reached

  patch.setattr(Step, "init", reached)
  patch.setattr(compare.Comparison, "train", reached)
  # those of commands that other tests have imported
  others = {n: m for n, m in sys.modules.items() if n[:7] == "launch."}
  others.pop("launch.command")
  aside = {
    flag.name: flag
    for name in others
    for flag in flags.FLAGS.flags_by_module_dict().get(name, ())
  }
  flags.FLAGS.remove_flag_values(aside)
  before = set(flags.FLAGS)

  def one(name, *words):
    words = [word.replace("{tmp}", str(folder)) for word in words]
    patch.setattr(sys, "argv", [name, *words])
    sys.modules.pop(f"launch.{name}", None)
    module = importlib.import_module(f"launch.{name}")
    try:
      left = launch_command.parse([name, *words], module.main)
      code = launch_command.guard(module.main)(left)
    except ValueError as error:  # as `run` does
      print(f"error: {error}", file=sys.stderr)
      code = 1
    except Reached:
      code = 0
    finally:
      flags.FLAGS.unparse_flags()
      flags.FLAGS.remove_flag_values(set(flags.FLAGS) - before)
      flags.FLAGS.mark_as_parsed()
    return code

  (folder / "file").write_text("x = ")
  yield one
  for name, flag in aside.items():
    flags.FLAGS[name] = flag
  sys.modules.update(others)
  patch.undo()


RUBBISH = {
  "compare": {
    **dict.fromkeys(
      "tokens params batch length seeds eval_bytes".split(), (*NUMBERS, "0")
    ),
    "together": NUMBERS,
    "lrs": ("", "abc", "-1", "0", "nan", "inf", "1e400"),
    "archs": ("", ",", "nosuch", "mamba:", "mamba:dim"),
    "data": ("", "nosuch", "text:", "text:/none", "task:", "task:mqar,a"),
    "workdir": ("", "{tmp}/file", "{tmp}/file/in"),
    "optimizer": ("", "sgd"),
    "keep": ("", "two"),
    "dtype": ("", "float16"),
    "remat": ("", "all"),
    "set": ("", "dim", "dmi=", "train.steps=3", "model.dim=abc"),
    "report": ("", "/none", "{tmp}/file"),
    "platform": ("", "abacus"),
  },
  "train": {
    "config": ("", "nosuch", "{tmp}", "{tmp}/file", "mamba2:huge"),
    "config.train.steps": (*NUMBERS, "0"),
    "config.train.lr": ("", "abc", "-1", "0", "nan", "inf", "1e400"),
    "config.train.beta1": ("-1", "1", "nan"),
    "config.train.epsilon": ("-1", "0", "inf"),
    "config.train.cooldown": ("-1", "2", "nan"),
    "config.train.keep": ("0",),
    "config.train.model_devices": ("0",),
    "config.train": ("3",),
    "config.model.dropout": ("1", "nan"),
    "config.model.norm_eps": ("0", "inf"),
    "config.model.positions": ("-1",),
    "config.model.pattern": ("", "abc", "3", "('nosuch',)"),
    "config.model.dtype": ("", "abc"),
    "config.model.vocab.tied": ("", "abc"),
    "config.train.schedule": ("abc",),
    "config.data.name": ("", "abc", "text:/none"),
    "workdir": ("", "{tmp}/file"),
  },
  "evaluate": {
    "workdir": ("", "/none", "{tmp}/file", "{tmp}"),
    "context": (*NUMBERS, "0"),
    "chunk": (*NUMBERS, "0"),
    "lanes": (*NUMBERS, "0"),
    "split": ("", "all"),
    "which": ("", "first"),
    "data": ("",),
  },
  "generate": {
    "workdir": ("", "/none", "{tmp}/file", "{tmp}"),
    "bytes": (*NUMBERS, "0"),
    "temperature": ("", "abc", "-1", "nan", "inf"),
    "top_p": ("", "-1", "nan", "2"),
    "seed": ("", "abc"),
  },
  "bench": {
    **dict.fromkeys("dim depth length batch symbols".split(), (*NUMBERS, "0")),
    "seconds": ("", "abc", "-1", "0", "nan", "inf"),
    "lengths": ("abc", "0", "-1", "3,5", "1e400"),
    "archs": ("", "nosuch"),
    "out": ("", "{tmp}", "/none/x"),
  },
  "architectures": {
    "archs": ("", "nosuch"),
    "out": ("", "{tmp}", "/none/x"),
  },
}
GIVEN = {  # beside the flag that is wrong
  "compare": (
    "--archs=rglru",
    "--params=none",
    "--data=task:parity",
    "--workdir={tmp}/compare",
  ),
  "train": (
    "--config=rglru:tiny",
    "--config.data.name=task:mqar,vocab=16,pairs=2,length=12",
    "--config.train.length=12",
    "--config.train.warmup=0",
    "--workdir={tmp}/train",
  ),
  "evaluate": ("--workdir={tmp}/none",),
  "generate": ("--workdir={tmp}/none",),
}


@pytest.mark.parametrize("name", RUBBISH)
def test_rubbish_is_one_line(name, call, capsys):
  for flag, values in RUBBISH[name].items():
    for value in values:
      words = (*GIVEN.get(name, ()), f"--{flag}={value}")
      code = call(name, *words)
      lines = capsys.readouterr().err.splitlines()
      lines = [
        li
        for li in lines
        if not li.endswith(": starting") and li[:6] != "sizes "
      ]
      assert code == 1 and len(lines) == 1, (words, code, lines)
      assert lines[0].startswith("error: "), (words, lines)
      about = (flag.rpartition(".")[2], *re.split("[=':]", value))
      about = [word.replace("{tmp}", "") for word in about]
      assert any(word in lines[0] for word in about), (words, lines)


@pytest.mark.parametrize(
  ("name", "word"),
  [
    ("compare", "--tokens=1e3"),
    ("compare", "--set=train.accumulate=2"),
    ("train", "--config.train.steps=1e3"),
    ("train", "--config.train.eval_bytes=64K"),
  ],
)
def test_what_is_in_order_is_taken(name, word, call):
  assert call(name, *GIVEN[name], word) == 0


@pytest.mark.parametrize("name", ["compare", "train", "bench", "evaluate"])
def test_what_is_said_to_need_less_memory_are_flags(name, call, capsys):
  text = (ROOT / "launch" / f"{name}.py").read_text()
  words = re.findall(
    r"--[\w.=]+", re.search(r"MEMORY = [^\n(]*\(?[^)]*", text)[0]
  )
  assert words
  for word in words:
    value = word if "=" in word else f"{word}=8"
    call(name, *GIVEN.get(name, ()), value, "--nosuch")
    assert "flag 'nosuch'" in capsys.readouterr().err


def test_little_memory_is_said_with_what_needs_less(capsys, monkeypatch):
  monkeypatch.setattr(platform, "setup", lambda *args: None)

  def main(argv):
    raise argv

  guarded = launch_command.guard(main, memory="--batch")
  flags.FLAGS.mark_as_parsed()
  for error in (RuntimeError("RESOURCE_EXHAUSTED: 9 GB\nmore"), MemoryError()):
    assert guarded(error) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: out of memory, try --batch: ")


@pytest.mark.parametrize("name", ["evaluate", "generate", "train"])
def test_a_missing_flag_is_named_with_what_it_is(name, call, capsys):
  assert call(name) == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert re.fullmatch(r"error: --(workdir|config) is missing: A .*", line)


@pytest.mark.parametrize("word", launch_command.HELP[:3])
def test_help_has_the_platform_and_the_configs_fields(word, call, capsys):
  with pytest.raises(SystemExit) as end:
    call("train", "--config=slstm:tiny", word)
  text = capsys.readouterr().out
  assert end.value.code == 0 and "\n--platform=cpu|gpu|tpu\n" in text
  assert "--config.model.mixers.slstm.heads=3\n" in text


def test_the_commands_are_listed():
  found = listing.commands()
  files = {f.stem for f in (ROOT / "launch").glob("[a-z]*.py")} - {"command"}
  assert set(found) == files and all(found.values())


@pytest.fixture
def planned(call, monkeypatch):
  """The plan that launch.compare makes of flags."""

  def plan(*words):
    made = []
    monkeypatch.setattr(
      compare.Comparison, "__init__", lambda *args, **_: made.append(args[2])
    )
    monkeypatch.setattr(compare.Comparison, "run", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      call("compare", *words)
    return made[0]

  return plan


def test_arms_are_equal_in_parameters_or_in_flops(planned):
  assert planned("--flops=1M") == Plan(params=None, flops=1_000_000)
  assert "flops" not in Plan().fixed  # as saved before it could be
  with pytest.raises(ValueError, match="params=1000000 and flops=1000000"):
    Plan(params=1_000_000, flops=1_000_000)


def test_the_flags_and_the_plan_have_one_default(planned):
  assert planned() == Plan() and Plan().folder == "compare"


@pytest.mark.parametrize(
  ("fields", "folder"),
  [
    ({"data": "text:/a/book.txt.gz"}, "compare-book"),
    ({"data": "text:b", "params": 2_000_000}, "compare-b-params2M"),
    ({"data": "task:mqar,vocab=16"}, "compare-mqar-vocab-16"),
    ({"data": "tfds:lm1b/x"}, "compare-tfds-lm1b-x"),
    ({"params": None, "tokens": 1_500_000}, "compare-paramsnone-tokens1500K"),
    ({"params": None, "flops": 400_000}, "compare-flops400K"),
    ({"settings": ("model.dtype=bfloat16",)}, "compare-dtype-bfloat16"),
    ({"optimizer": "muon", "seeds": 9, "lrs": (1,)}, "compare-muon"),
  ],
)
def test_a_comparison_is_named_after_what_is_not_as_by_default(fields, folder):
  assert Plan(**fields).folder == folder


@pytest.mark.parametrize(
  ("words", "error"),
  [
    (
      ("configs/mamba2.py:tiny", "--config.train.rl=3"),
      "no field .*train.rl: ",
    ),
    (("configs/mamba2.py:tin",), "unknown size 'tin'"),
    (("mamba22",), "unknown architecture 'mamba22': there is no file mamba22"),
    (
      ("configs/attention.py", "--config.model.mixers.attention.window=8"),
      "attention.py sets can be such a flag; give --set=model.mixers.*w=8",
    ),
    (
      ("configs/attention.py", "--config.model.mixers.mamba2.head=8"),
      "only a field that configs/attention.py sets can .*; set it there",
    ),
  ],
)
@pytest.mark.parametrize("way", ["--config {}", "--config={}", "-config {}"])
def test_a_wrong_config_is_refused(words, error, way, monkeypatch):
  monkeypatch.chdir(ROOT)
  path, *fields = words
  with pytest.raises(ValueError, match=error):
    launch_command.plain(["train", *way.format(path).split(), *fields])


def test_a_config_of_another_folder_says_where_to_run(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=f"run from {ROOT}"):
    launch_command.plain(["train", "--config=configs/mamba2.py"])


@pytest.mark.parametrize("folder", [".", "tests"])
@pytest.mark.parametrize("given", ["mamba2", "mamba2:tiny"])
def test_a_config_is_named_as_an_arm_is(folder, given, monkeypatch):
  monkeypatch.chdir(ROOT / folder)
  path = "configs/mamba2.py" if folder == "." else f"{ROOT}/configs/mamba2.py"
  words = ["train", "--config", given, "--config.train.steps", "1e3"]
  assert launch_command.plain(words) == [
    "train",
    f"--config={given.replace('mamba2', path)}",
    "--config.train.steps=1000",
  ]


@pytest.mark.parametrize(
  ("body", "code", "said"),
  [
    ("os.kill(os.getpid(), 2); time.sleep(9)", 130, "interrupted\n"),
    ("sys.stdout.write('x' * 99999)", 141, ""),
    ("raise RuntimeError('RESOURCE_EXHAUSTED: 9 GB')", 1, "error: out of mem"),
    ("raise OSError(2, 'No such file', 'x')", 1, "error: .*No such file: 'x'"),
  ],
)
def test_an_end_is_one_line(body, code, said, tmp_path):
  """Whatever ends a command; here nobody reads what it prints."""
  (tmp_path / "ends.py").write_text(
    "import os, sys, time\nfrom launch import command\n"
    f"def main(argv):\n  {body}\ncommand.run(main)"
  )
  read, write = os.pipe()
  os.close(read)
  done = subprocess.run(
    [sys.executable, tmp_path / "ends.py"],
    env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    stdout=write,
    stderr=subprocess.PIPE,
    text=True,
    timeout=240,
  )
  os.close(write)
  start, *lines = done.stderr.splitlines(keepends=True)
  assert start.endswith(": starting\n") and done.returncode == code, done.stderr
  assert len(lines) == bool(said) and re.match(said, "".join(lines))
