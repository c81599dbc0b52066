"""Files of strangers, damaged: one line says what is wrong, or nothing changes.

FUZZ=2000 pytest tests/test_fuzz.py tries so many; by default some hundreds. A
folder that is taken must be written back as it is, its fields must be what
transformers makes of config.json (where that is installed), and what differs
from the undamaged one must be what was changed or be said in a line.
"""

import json
import os
import shutil
from types import SimpleNamespace

import fuzz
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_report import make as compared

import configs
from arch import arrays, lm
from train import (
  checkpoint,
  compare,
  convert,
  metrics,
  report,
  schema,
  tokenizer,
  workdir,
)
from train.convert import fields, types
from train.convert.rules import backwards
from train.report import kinds

COUNT = int(os.environ.get("FUZZ", 300))
SHARE = {"config": 0.5, "tensors": 0.2, "index": 0.05, "tokenizer": 0.05}
KINDS = sorted(fuzz.CONFIGS)


def test_every_type_has_a_checkpoint():
  assert KINDS == types.names()


shapes_once = pytest.fixture(autouse=True)(fuzz.shapes_once)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
  """type -> its folder and what is read of it."""
  made = {}

  def get(kind, shards=1):
    if (kind, shards) not in made:
      path = tmp_path_factory.mktemp("plain") / kind
      fuzz.make(kind, path, shards)
      words = tokenizer.BPE.train([b"to be or not to be"], 256)
      words.save(path / tokenizer.FILE)
      made[kind, shards] = path, convert.model_of(path)
    return made[kind, shards]

  return get


def one_line(call, *args):
  """What a call answers, or the error's line, which a list may follow."""
  try:
    return call(*args), None
  except (ValueError, OSError) as e:
    line, *rest = str(e).splitlines()
    assert line and all(fault.startswith("  ") for fault in rest), str(e)
    assert not rest or line.endswith(":"), str(e)
    return None, str(e)


def rules_of(path, read):
  raw = read.source["config"]
  module, hf, spelling, _ = convert.understood(
    raw, read.source["tensors"], path
  )
  found = convert.every_rule(hf, module, lm.abstract(read.model))
  return module, hf, spelling, found


def flat(read) -> dict:
  params, buffers = (
    convert.flatten_dict(read.state[name]) for name in ("params", "buffers")
  )
  return params | buffers


def same(a, b) -> bool:
  one, two = flat(a), flat(b)
  return (
    a.model == b.model
    and one.keys() == two.keys()
    and all(np.array_equal(one[k], two[k]) for k in one)
  )


def goes_back(path, read):
  """Every tensor of the folder's own files is made again from what was read."""
  module, hf, spelling, found = rules_of(path, read)
  made = backwards(found, flat(read)) | read.kept
  for name, other in module.ignored(hf).items():
    if name in spelling and isinstance(other, str):
      made[name] = made[other]
  tensors = {}
  for file in {file for file, _ in read.source["tensors"].values()}:
    tensors |= load_file(path / file)
  assert tensors.keys() == set(spelling.values())
  for full, name in spelling.items():
    assert np.array_equal(made[full].astype(tensors[name].dtype), tensors[name])


@pytest.mark.parametrize("kind", KINDS)
def test_config(kind, plain, tmp_path):
  path, before = plain(kind)
  raw = json.loads((path / "config.json").read_text())
  module = types.find(raw, path)
  own = fields.COMMON | module.FIELDS
  draw = np.random.default_rng(KINDS.index(kind))
  bad = tmp_path / "bad"
  shutil.copytree(path, bad)
  for _ in range(round(COUNT * SHARE["config"] / len(KINDS))):
    how = draw.integers(10)
    name = None
    if how == 0:
      data = fuzz.torn((path / "config.json").read_bytes(), draw)
      (bad / "config.json").write_bytes(data)
    elif how < 4:  # a field that the folder leaves out, or no type has
      names = [*sorted(own), "sliding_window", "no_such_field"]
      name = names[draw.integers(len(names))]
      value = fuzz.VALUES[draw.integers(len(fuzz.VALUES))]
      (bad / "config.json").write_text(json.dumps(raw | {name: value}))
    else:
      new, ((name, *_), _) = fuzz.changed(raw, draw)
      (bad / "config.json").write_text(json.dumps(new))
    after, error = one_line(convert.model_of, bad)
    if error:
      assert str(bad) in error
      continue
    goes_back(bad, after)
    judge(kind, name, before, after)


def judge(kind, name, before, after):
  """A field that was changed changes what it should, or a line says so."""
  module = types.find(after.source["config"], "")
  one, two = (
    fields.read(x.source["config"], module, range(1000), "")[0]
    for x in (before, after)
  )
  differ = {k for k in one if one[k] != two[k]}
  said = " ".join(after.notes)
  given = after.source["config"]
  for field in differ:
    names = {field} | {
      a for a, b in getattr(module, "NAMES", {}).items() if b == field
    }
    names |= (
      {"rope_parameters", "rope_scaling"} if "rope_theta" in names else set()
    )
    said_so = f"{field}=" in said or f"no {field}" in said
    assert names & given.keys() or said_so or same(before, after), (name, field)
  if not differ:
    assert same(before, after), name
    new = given.keys() - before.source["config"].keys()
    for field in new - {*fields.ROPE, *module.FIELDS, *fields.COMMON}:
      known = fields.INERT | getattr(module, "UNREAD", set())
      known |= getattr(module, "NAMES", {}).keys()
      assert field in known or given[field] is None or field in said
  transformers_agrees(kind, given, two, module)


def transformers_agrees(kind, given, hf, module):
  """Fields are what transformers' config class makes of a config.json."""
  if kind == "rwkv7":
    return
  try:
    from transformers import CONFIG_MAPPING
  except ImportError:
    return
  try:
    theirs = CONFIG_MAPPING[kind].from_dict(json.loads(json.dumps(given)))
  except Exception:
    return  # refused there
  rope = getattr(theirs, "rope_parameters", None) or {}
  inner = hf.get("linear_attn_config") and "linear_"  # theirs is from there
  for name in module.FIELDS:
    if inner and name.startswith(inner):
      continue
    value = rope[name] if name in rope else getattr(theirs, name, None)
    own = hf[name]
    if own is None or own == "auto" or value is None:
      continue  # follows from other fields
    if isinstance(own, list | tuple):
      own, value = list(own), list(value)
    assert own == value, (name, own, value)


def tensors_changed(path, draw):
  """Does something to the tensors of a folder of two shards."""
  files = sorted(path.glob("*.safetensors"))
  file = files[draw.integers(len(files))]
  tensors = load_file(file)
  names = sorted(tensors)
  one, two = (names[i] for i in draw.integers(len(names), size=2))
  how = draw.integers(12)
  if how < 4:
    file.write_bytes(fuzz.torn(file.read_bytes(), draw))
    return
  if how == 4:
    data = file.read_bytes()  # a byte of the header
    at = 8 + draw.integers(int.from_bytes(data[:8], "little"))
    byte = bytes([draw.integers(32, 127)])
    file.write_bytes(data[:at] + byte + data[at + 1 :])
    return
  if how == 5:
    tensors[f"{one}.more"] = tensors.pop(one)
  elif how == 6:
    tensors[one], tensors[two] = tensors[two], tensors[one]
  elif how == 7:
    tensors[one] = tensors[one].reshape(-1)
  elif how == 8:
    kind = ("float16", "float64", "int8", "bool", "uint64")[draw.integers(5)]
    tensors[one] = tensors[one].astype(kind)
  elif how == 9:
    tensors[one] = np.where(tensors[one] > 0, np.nan, tensors[one])
  elif how == 10:
    save_file({one: tensors[one] + 1}, path / "stray.safetensors")
  else:
    del tensors[one]
  save_file(tensors, file)


@pytest.mark.parametrize("shards", [1, 2])
def test_tensors(shards, plain, tmp_path):
  draw = np.random.default_rng(shards)
  for n in range(round(COUNT * SHARE["tensors"] / 2)):
    kind = KINDS[n % len(KINDS)]
    path, before = plain(kind, shards)
    bad = tmp_path / str(n)
    shutil.copytree(path, bad)
    tensors_changed(bad, draw)
    after, error = one_line(convert.model_of, bad)
    if error:
      assert str(bad) in error
    else:
      goes_back(bad, after)
      assert before.model == after.model
    shutil.rmtree(bad)


def test_index(plain, tmp_path):
  draw = np.random.default_rng(0)
  path, before = plain("lfm2", 2)
  bad = tmp_path / "bad"
  shutil.copytree(path, bad)
  file = bad / convert.INDEX
  whole = file.read_bytes()
  for _ in range(round(COUNT * SHARE["index"])):
    if draw.integers(3):
      file.write_text(json.dumps(fuzz.changed(json.loads(whole), draw)[0]))
    else:
      file.write_bytes(fuzz.torn(whole, draw))
    after, error = one_line(convert.model_of, bad)
    if error:
      assert str(bad) in error
    else:
      assert same(before, after)


def test_tokenizer(plain, tmp_path):
  draw = np.random.default_rng(0)
  path, _ = plain("lfm2")
  whole = (path / tokenizer.FILE).read_bytes()
  text = "To be é\n\nor <|not|> to be".encode()
  right, _ = convert.own_tokenizer(path, fuzz.V)
  for _ in range(round(COUNT * SHARE["tokenizer"])):
    if draw.integers(3):
      bad = json.dumps(fuzz.changed(json.loads(whole), draw)[0]).encode()
    else:
      bad = fuzz.torn(whole, draw)
    (tmp_path / tokenizer.FILE).write_bytes(bad)
    (words, why), error = one_line(convert.own_tokenizer, tmp_path, fuzz.V)
    assert error is None
    if words is None:
      assert str(tmp_path) in why and "\n" not in why
    else:
      try:
        assert words.decode(words.encode(text)) == text
      except ValueError:
        pass  # found out when a text is encoded


def tensors_of(path) -> dict:
  found = {}
  for file in path.glob("*.safetensors"):
    found |= load_file(file)
  return found


@pytest.fixture(scope="module")
def comparison():
  return report.plain(compared(("a", "b"), (1, 2)))


def test_results(comparison, tmp_path):
  draw = np.random.default_rng(0)
  for run in comparison["runs"]:
    run["curve"] = {name: part[:2] for name, part in run["curve"].items()}
  path = tmp_path / "work"
  path.mkdir()
  file = path / "results.json"
  whole = json.dumps(comparison)
  file.write_text(whole)
  right = report.leaderboard(report.read(path))
  for n in range(round(COUNT * 0.1)):
    place = new = None
    if draw.integers(4):
      bad, (place, new) = fuzz.changed(comparison, draw)
      file.write_text(json.dumps(bad))
    else:
      file.write_bytes(fuzz.torn(whole.encode(), draw))
    found, error = one_line(report.gather, [path], tmp_path / "out")
    if error:
      assert str(path) in error
      continue
    board, error = one_line(report.leaderboard, found)
    # the same numbers, and perhaps a word more on where they come from
    same = board and f"{board}\n".startswith(f"{right}\n")
    assert error or same or legal(place, new), (place, new)
    if n % 8 == 0:
      one_line(report.write, found, tmp_path / "out")


def test_result_of_a_run(comparison, tmp_path):
  draw = np.random.default_rng(0)
  cfg = configs.load("rglru", "tiny")
  run = comparison["runs"][0] | {"config": workdir.plain(cfg)}
  run["curve"] = {name: part[:2] for name, part in run["curve"].items()}
  file = tmp_path / "result.json"
  whole = json.dumps(run)
  for _ in range(round(COUNT * 0.05)):
    if draw.integers(4):
      file.write_text(json.dumps(fuzz.changed(run, draw)[0]))
    else:
      file.write_bytes(fuzz.torn(whole.encode(), draw))
    found, error = one_line(compare.whole, file, cfg)
    if error:
      assert str(file) in error
    else:
      assert schema.wrong(found, kinds.RUN, "it") is None


def legal(place, new) -> bool:
  """Whether a value of results.json was replaced by another that may be."""
  return place is None or (new != "dropped" and new is not None)


def test_metrics(tmp_path):
  draw = np.random.default_rng(0)
  lines = [{"step": n, "loss": 2.0 / n, "lr": 1e-3} for n in range(1, 4)]
  file = tmp_path / metrics.LINES
  for _ in range(round(COUNT * 0.05)):
    bad, (place, new) = fuzz.changed(lines, draw)
    if draw.integers(3):
      text = "".join(json.dumps(line) + "\n" for line in bad).encode()
    else:
      text = "".join(json.dumps(line) + "\n" for line in lines).encode()
      text, place = fuzz.torn(text, draw), None
    file.write_bytes(text)
    found, error = one_line(metrics.read, tmp_path)
    if error:
      assert str(file) in error
    elif place is not None:
      assert found == bad
    assert error or all(
      schema.wrong(x, metrics.LINE, "") is None for x in found
    )


def test_what_a_run_keeps_of_its_folder(plain, tmp_path, monkeypatch):
  """source.json and config.json of a workdir, and the way back."""
  draw = np.random.default_rng(0)
  path, _ = plain("lfm2", 2)
  run, out = tmp_path / "run", tmp_path / "out" / "to"
  convert.into(path, run, configs.base_config())
  model = checkpoint.load_model(run)
  right = tensors_of(path)
  known = SimpleNamespace(load=lambda *_: model)
  monkeypatch.setattr(convert, "models", known)
  names = "source.json", "config.json"
  files = {name: (run / name).read_bytes() for name in names}
  for n in range(round(COUNT * 0.05)):
    name = names[n % 2]
    whole = files[name]
    if draw.integers(3):
      bad = json.dumps(fuzz.changed(json.loads(whole), draw)[0]).encode()
    else:
      bad = fuzz.torn(whole, draw)
    (run / name).write_bytes(bad)
    if name == "config.json":
      found, error = one_line(workdir.of_run, run)
      if not error:
        _, error = one_line(checkpoint.load_model, run)
    else:
      count, error = one_line(convert.out_of, run, out)
      assert sorted(p.name for p in tmp_path.iterdir()) in (
        ["out", "run"],
        ["run"],
      )
      if not error:
        made = tensors_of(out)
        assert right.keys() == made.keys()
        # source.json may ask for float16, or bfloat16
        assert all(np.allclose(right[k], made[k], 1e-2) for k in made)
      shutil.rmtree(out.parent, ignore_errors=True)
    if error:
      assert str(tmp_path) in error
    (run / name).write_bytes(whole)


def more(value):
  """Another value of a field, of the same kind."""
  match value:
    case bool():
      return not value
    case int():
      return value + 1
    case float():
      return value * 1.5


@pytest.mark.skipif("FUZZ" not in os.environ, reason="compiles every type")
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "rwkv7"])
def test_fields_change_the_logits_as_in_transformers(
  kind, plain, tmp_path, monkeypatch
):
  """All at once that may change while the tensors stay."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  monkeypatch.undo()  # of shapes_once
  path, before = plain(kind)
  raw = json.loads((path / "config.json").read_text())
  module = types.find(raw, path)
  hf, _ = fields.read(raw, module, range(1000), path)
  new = tmp_path / "new"
  shutil.copytree(path, new)
  taken, idle = raw | {"pad_token_id": None}, set()
  for name in module.FIELDS:
    value = more(hf[name])
    if value is None or name == "bos_token_id":
      continue
    (new / "config.json").write_text(json.dumps(taken | {name: value}))
    after, error = one_line(convert.model_of, new)
    if error is None:
      taken |= {name: value}
      if after.model == before.model:
        idle.add(name)
  (new / "config.json").write_text(json.dumps(taken))
  after = convert.model_of(new)
  changed = sorted(k for k in taken if taken[k] != raw.get(k))
  print(kind, changed, "idle:", sorted(idle))
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    new, attn_implementation="eager", experts_implementation="eager"
  )
  tokens = np.random.default_rng(0).integers(0, fuzz.V, (2, 19))
  with torch.no_grad():
    found = theirs.eval()(torch.tensor(tokens), use_cache=False)
  right = found.logits.numpy()
  model = arrays.fill(lm.abstract(after.model), **after.state)
  own, _ = model(jnp.asarray(tokens))
  assert np.abs(own - right).max() < 1e-4 * max(1, np.abs(right).max())
  model = arrays.fill(lm.abstract(before.model), **before.state)
  assert np.abs(model(jnp.asarray(tokens))[0] - right).max() > 1e-3
