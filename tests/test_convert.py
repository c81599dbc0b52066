"""Folders of transformers' own random models, in and out."""

import copy
import importlib
import inspect
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from models import close, distance
from safetensors.numpy import load_file, save_file
from test_launch import run

import configs
from arch import arrays, losses
from train import checkpoint, convert, generate, workdir
from train.convert import types
from train.convert.rules import backwards

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import transformers  # noqa: E402
from convert import T, V  # noqa: E402

TYPES = sorted(
  p.stem for p in (Path(__file__).parent / "convert").glob("[a-z]*")
)


def module(kind):
  return importlib.import_module(f"convert.{kind}")


def mark(kind):
  """One worker for a type, whose folders are then made once."""
  return pytest.mark.xdist_group(f"convert {kind}")


def every(marks=lambda kind, name: []):
  return pytest.mark.parametrize(
    ("kind", "name"),
    [
      pytest.param(
        kind, name, id=f"{kind}, {name}", marks=[mark(kind), *marks(kind, name)]
      )
      for kind in TYPES
      for name in module(kind).CASES
    ],
  )


def recorded(section):
  """Of a few nothing is on record: what checks the others still stands."""

  def marks(kind, name):
    always = name == "plain" and kind in ("llama", "mamba2")
    case = {"case": name} if section == "cases" else name
    mark = pytest.mark.recorded("conversions", kind, section, case)
    return [] if always else [mark]

  return marks


def noisy(theirs):
  """With noise on every number that is saved, also on a router's bias."""
  torch.manual_seed(0)
  with torch.no_grad():
    for name, t in theirs.state_dict(keep_vars=True).items():
      if isinstance(t, torch.nn.Parameter) or name.endswith("bias"):
        t.add_(0.1 * torch.randn_like(t))
  return theirs.eval()


def test_every_type_has_a_file():
  assert TYPES == types.names()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """type and case -> the model, and its folder; each is made once."""
  made = {}

  def get(kind, name="plain"):
    if (kind, name) not in made:
      path = tmp_path_factory.mktemp("folder")
      torch.manual_seed(0)
      theirs = noisy(module(kind).CASES[name]())
      theirs.save_pretrained(path)
      made[kind, name] = theirs, path
    return made[kind, name]

  return get


@pytest.fixture(scope="module")
def runs(folders, tmp_path_factory):
  """type and case -> the run that its folder was made into, once."""
  made = {}

  def get(kind, name):
    if (kind, name) not in made:
      path = tmp_path_factory.mktemp("run") / "run"
      made[kind, name] = into(folders(kind, name)[1], path), path
    return made[kind, name]

  return get


WEIGHTS = "model.safetensors"
BUFFERS = "e_score_correction_bias"  # saved, and without a gradient


def into(path, run):
  return convert.into(path, run, configs.base_config())


def graded(theirs, path):
  """The loss, and its gradients by the names of the folder's tensors."""
  holder = copy.deepcopy(theirs)
  text = torch.tensor(tokens())
  logits = theirs(text).logits
  nll = torch.nn.functional.cross_entropy(
    logits.reshape(-1, V), torch.roll(text, -1, 1).reshape(-1)
  )
  nll.backward()
  pairs = zip(holder.parameters(), theirs.parameters(), strict=True)
  with torch.no_grad():
    for p, own in pairs:
      p.copy_(own.grad)
  holder.save_pretrained(path)
  return logits.detach().numpy(), nll.item(), load_file(path / WEIGHTS)


def tokens():
  return np.random.default_rng(0).integers(0, V, (2, T))


def decoded(kind, theirs):
  """Logits from a token at a time and their own cache."""
  theirs = copy.deepcopy(theirs)  # some keep a state of their own
  cache = getattr(module(kind), "cache", transformers.DynamicCache)(
    config=theirs.config
  )
  own = inspect.signature(theirs.forward).parameters
  name = next(n for n in ("past_key_values", "cache_params") if n in own)
  with torch.no_grad():
    steps = [
      theirs(column[:, None], use_cache=True, **{name: cache}).logits
      for column in torch.tensor(tokens()).T
    ]
  return torch.cat(steps, 1).numpy()


@every(recorded("cases"))
def test_logits_gradients_and_decoding(
  kind, name, folders, runs, tmp_path, record_property
):
  theirs, path = folders(kind, name)
  found, made = runs(kind, name)
  assert found["params"] >= sum(p.numel() for p in theirs.parameters())
  model = checkpoint.load_model(made)
  cached = name not in getattr(module(kind), "NO_CACHE", ())
  steps = decoded(kind, theirs) if cached else None
  logits, nll, grads = graded(theirs, tmp_path / "gradients")

  params, buffers = arrays.pure(model)
  text = jnp.asarray(tokens())

  @jax.jit
  def run(params):
    def loss(params):
      own = arrays.fill(model, params, buffers)
      logits, _ = own(text)
      nats = losses.nll(logits.reshape(-1, V), jnp.roll(text, -1, 1).ravel())
      return jnp.mean(nats), logits

    return jax.value_and_grad(loss, has_aux=True)(params)

  (nats, own), gradient = run(params)
  close(nats, nll, 1e-5)
  errors = {"value": distance(own, logits)}
  if steps is not None:
    errors["decode"] = distance(own, steps)
  hf = json.loads((path / "config.json").read_text())
  rules, told, *_ = convert.understood(hf, load_file(path / WEIGHTS), path)
  found = convert.every_rule(told, rules, model)
  flat = flatten_dict(jax.tree.map(np.zeros_like, buffers))
  flat |= {p: np.asarray(g) for p, g in flatten_dict(gradient).items()}
  own = backwards(found, flat)
  assert own.keys() == grads.keys()
  trained = {k: g for k, g in grads.items() if not k.endswith(BUFFERS)}
  largest = max(np.abs(g).max() for g in trained.values())
  errors["gradient"] = max(
    float(np.abs(own[k] - g).max() / largest) for k, g in trained.items()
  )
  about = {"fields": {"case": name}, "errors": errors}
  record_property("provenance", ["conversions", kind, "cases", about])
  assert max(errors.values()) < 1e-4, errors


@every(recorded("round trip"))
def test_the_round_trip_is_exact(
  kind, name, folders, runs, tmp_path, record_property
):
  _, path = folders(kind, name)
  convert.out_of(runs(kind, name)[1], tmp_path / "out")
  theirs, ours = (load_file(p / WEIGHTS) for p in (path, tmp_path / "out"))
  assert theirs.keys() == ours.keys()
  for key, x in theirs.items():
    assert x.dtype == ours[key].dtype and np.array_equal(x, ours[key]), key
  configs_ = [
    json.loads((p / "config.json").read_text())
    for p in (path, tmp_path / "out")
  ]
  assert configs_[0] == configs_[1]
  record_property("provenance", ["conversions", kind, "round trip", name])


def test_shards_and_bfloat16(tmp_path):
  theirs = noisy(module("llama").CASES["plain"]()).to(torch.bfloat16)
  theirs.save_pretrained(tmp_path / "a", max_shard_size="8KB")
  assert len(list((tmp_path / "a").glob("*.safetensors"))) > 1
  into(tmp_path / "a", tmp_path / "run")
  convert.out_of(tmp_path / "run", tmp_path / "b")
  files = sorted(p.name for p in (tmp_path / "a").glob("*.safetensors"))
  assert files == sorted(p.name for p in (tmp_path / "b").glob("*.safetensors"))
  for file in files:
    one, two = (load_file(tmp_path / d / file) for d in "ab")
    assert one.keys() == two.keys()
    for key in one:
      assert one[key].dtype == two[key].dtype == "bfloat16"
      assert np.array_equal(one[key], two[key])
  from transformers import LlamaForCausalLM

  again = LlamaForCausalLM.from_pretrained(tmp_path / "b")
  assert again.dtype == torch.bfloat16

  (tmp_path / "a" / files[0]).unlink()
  with pytest.raises(ValueError, match=f"lists .* in {files[0]}, which is not"):
    into(tmp_path / "a", tmp_path / "other")


def test_the_start_symbol_is_theirs(folders, tmp_path):
  _, path = folders("gpt2")
  into(path, tmp_path / "run")
  table = checkpoint.load_model(tmp_path / "run").vocab.embedding.rows[...]
  assert table.shape[0] == V + 1
  assert np.array_equal(table[V], table[5])


def broken(path, to, change):
  shutil.copytree(path, to)
  tensors = load_file(to / WEIGHTS)
  change(tensors)
  save_file(tensors, to / WEIGHTS)


NORM = "model.norm.weight"


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda t: t.pop(NORM), rf"{NORM} is missing; expected \[24\]"),
    (lambda t: t.update(more=np.ones(3)), r"more \[3\] has no place"),
    (
      lambda t: t.update({NORM: np.ones(23, np.float32)}),
      rf"{NORM} is \[23\], expected \[24\]",
    ),
    (
      lambda t: t.update({NORM: np.ones(24, np.int8)}),
      f"{NORM} is int8, expected float32",
    ),
  ],
)
def test_tensors_that_do_not_fit(change, message, folders, tmp_path):
  broken(folders("llama")[1], tmp_path / "bad", change)
  with pytest.raises(ValueError, match=message):
    into(tmp_path / "bad", tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_files_that_cannot_be_read(folders, tmp_path):
  _, path = folders("llama")
  bad = tmp_path / "bad"
  shutil.copytree(path, bad)
  file = bad / WEIGHTS
  file.write_bytes(file.read_bytes()[:-7])
  with pytest.raises(ValueError, match="model.safetensors is cut short"):
    into(bad, tmp_path / "run")
  file.rename(bad / "pytorch_model.bin")
  with pytest.raises(
    ValueError, match="pytorch_model.bin: pickled weights run"
  ):
    into(bad, tmp_path / "run")
  hf = json.loads((bad / "config.json").read_text())
  shutil.copy(path / WEIGHTS, bad)
  for fields, message in (
    ({"model_type": "lama"}, "'lama': did you mean 'llama'"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
    ({"rope_scaling": {"factor": 2}}, "rope_scaling"),
    ({"rope_parameters": {"type": "linear", "factor": 2.0}}, "type='linear'"),
    (
      {
        "model_type": "kimi_linear",
        "num_key_value_heads": 4,
        "num_expert_group": 8,
      },
      "n_group=8",
    ),
    (
      {"model_type": "rwkv7", "hidden_act": "sqrelu", "attn": {"layers": [1]}},
      r"attn=\{'layers': \[1\]\}",
    ),
    ({"model_type": "nanochat"}, "hidden_act='silu' is not supported"),
    ({"model_type": "xlstm", "weight_mode": "fused"}, "weight_mode='fused'"),
    (
      {
        "model_type": "xlstm",
        "num_heads": 5,
        "qk_dim_factor": 0.5,
        "v_dim_factor": 1.0,
      },
      "num_heads=5 must divide the 12 numbers of all keys and the 24 of all",
    ),
    (
      {"model_type": "lfm2", "layer_types": ["conv", "mamba", "conv"]},
      r"layer_types=\['conv', 'mamba', 'conv'\] must be 3 of \['conv', 'full",
    ),
    ({"model_type": "olmoe", "clip_qkv": 8.0}, "clip_qkv=8.0"),
    (
      {
        "model_type": "olmoe",
        "num_experts": 4,
        "num_experts_per_tok": 1,
        "norm_topk_prob": True,
      },
      "norm_topk_prob=True is not supported with num_experts_per_tok=1 of 4",
    ),
    (
      {"model_type": "jamba", "mamba_conv_bias": False},
      "mamba_conv_bias=False",
    ),
    (
      {"model_type": "jamba", "mamba_proj_bias": True},
      "mamba_proj_bias=True",
    ),
    (
      {
        "model_type": "qwen3_next",
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 4,
        "linear_value_head_dim": 6,
      },
      "linear_key_head_dim=4 must divide linear_value_head_dim=6",
    ),
    ({"head_dim": 7}, "of head=7, rotary=1.0 turns 7, which must be even"),
  ):
    (bad / "config.json").write_text(json.dumps(hf | fields))
    with pytest.raises(ValueError, match=message):
      into(bad, tmp_path / "run")
  (bad / "config.json").unlink()
  with pytest.raises(ValueError, match="holds no config.json"):
    into(bad, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_qwen3_next_as_it_was_published(folders, tmp_path):
  """With fields of its time, and layers that transformers leaves out."""
  _, path = folders("qwen3_next")
  into(path, tmp_path / "run")
  old = tmp_path / "folder"
  broken(path, old, lambda t: t.update({"mtp.fc.weight": t["lm_head.weight"]}))
  hf = json.loads((old / "config.json").read_text())
  del hf["layer_types"]
  rope = hf.pop("rope_parameters")
  hf |= {"full_attention_interval": 2, "rope_scaling": None}
  hf |= {n: rope[n] for n in ("rope_theta", "partial_rotary_factor")}
  (old / "config.json").write_text(json.dumps(hf))
  into(old, tmp_path / "old")
  one, two = (
    workdir.read(tmp_path / d)["config"]["model"] for d in ("run", "old")
  )
  assert one == two
  convert.out_of(tmp_path / "old", tmp_path / "out")
  assert (
    load_file(tmp_path / "out" / WEIGHTS).keys()
    == load_file(old / WEIGHTS).keys()
  )


def test_folders_are_never_overwritten(folders, tmp_path):
  _, path = folders("llama")
  into(path, tmp_path / "run")
  with pytest.raises(ValueError, match="holds a run already"):
    into(path, tmp_path / "run")
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "mine").touch()
  with pytest.raises(ValueError, match="is not empty"):
    convert.out_of(tmp_path / "run", tmp_path / "out")
  with pytest.raises(ValueError, match="was not made by launch.convert"):
    convert.out_of(tmp_path, tmp_path / "new")


def test_the_commands(folders, tmp_path):
  _, path = folders("mamba")
  own = f"--workdir={tmp_path / 'run'}"
  code, text = run("convert", f"--from={path}", own)
  assert code == 0 and "run: mamba, " in text and "tokenizer none" in text
  code, text = run("convert", f"--to={tmp_path / 'out'}", own)
  assert code == 0 and "tensors, and config.json" in text
  assert (tmp_path / "out" / WEIGHTS).exists()
  code, text = run("convert", own)
  assert code == 1 and "error: name one folder" in text


def test_a_byte_level_tokenizer_comes_along(folders, tmp_path):
  from train.tokenizer import BPE

  _, path = folders("gpt2")
  bad = tmp_path / "folder"
  shutil.copytree(path, bad)
  learnt = BPE.train([b"aab ab"], 260)
  learnt.save(bad / "tokenizer.json")
  found = into(bad, tmp_path / "run")
  assert f"{learnt.vocab} symbols, the model {V}" in found["tokenizer"]
  assert not (tmp_path / "run" / "tokenizer.json").exists()

  theirs = noisy(module("gpt2").model(vocab_size=learnt.vocab + 3))
  theirs.save_pretrained(tmp_path / "fits")
  learnt.save(tmp_path / "fits" / "tokenizer.json")
  found = into(tmp_path / "fits", tmp_path / "whole")
  assert found["tokenizer"] == str(tmp_path / "fits" / "tokenizer.json")
  written = generate.stream(tmp_path / "whole", b"ab", temperature=0, size=9)
  assert sum(map(len, written)) >= 9
  convert.out_of(tmp_path / "whole", tmp_path / "out")
  assert (tmp_path / "out" / "tokenizer.json").exists()
