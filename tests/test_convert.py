"""Folders of transformers' own random models, in and out."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from models import close
from safetensors.numpy import load_file, save_file
from test_launch import run

import configs
from arch import lm
from train import checkpoint, convert, generate, workdir

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

pytestmark = pytest.mark.xdist_group("convert")

T, V = 21, 37


def llama(**fields):
  from transformers import LlamaConfig, LlamaForCausalLM

  return LlamaForCausalLM(
    LlamaConfig(
      hidden_size=24,
      intermediate_size=29,
      num_hidden_layers=3,
      num_attention_heads=4,
      num_key_value_heads=2,
      max_position_embeddings=T,
      vocab_size=V,
      **fields,
    )
  )


def gpt2(vocab_size=V):
  from transformers import GPT2Config, GPT2LMHeadModel

  return GPT2LMHeadModel(
    GPT2Config(
      n_embd=24,
      n_layer=3,
      n_head=4,
      n_positions=T,
      vocab_size=vocab_size,
      bos_token_id=5,
      eos_token_id=5,
    )
  )


def mamba(**fields):
  from transformers import MambaConfig, MambaForCausalLM

  return MambaForCausalLM(
    MambaConfig(
      hidden_size=12,
      num_hidden_layers=3,
      state_size=5,
      time_step_rank=3,
      conv_kernel=3,
      vocab_size=V,
      use_mambapy=False,
      **fields,
    )
  )


def falcon_mamba():
  from transformers import FalconMambaConfig, FalconMambaForCausalLM

  return FalconMambaForCausalLM(
    FalconMambaConfig(
      hidden_size=12,
      num_hidden_layers=2,
      state_size=5,
      time_step_rank=3,
      conv_kernel=3,
      vocab_size=V,
      bos_token_id=0,
      use_mambapy=False,
    )
  )


def recurrent_gemma(**fields):
  from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

  return RecurrentGemmaForCausalLM(
    RecurrentGemmaConfig(
      hidden_size=24,
      intermediate_size=58,
      num_hidden_layers=5,
      num_attention_heads=3,
      num_key_value_heads=1,
      attention_window_size=5,
      conv1d_width=3,
      vocab_size=V,
      attn_implementation="eager",
      pad_token_id=None,  # torch gives the pad's row no gradient
      **fields,
    )
  )


def mamba2(**fields):
  from transformers import Mamba2Config, Mamba2ForCausalLM

  return Mamba2ForCausalLM(
    Mamba2Config(
      hidden_size=12,
      num_heads=6,
      head_dim=4,
      n_groups=2,
      num_hidden_layers=3,
      state_size=5,
      conv_kernel=3,
      chunk_size=8,
      vocab_size=V,
      bos_token_id=0,
      **fields,
    )
  )


CASES = {
  "llama": lambda: llama(),
  "llama, tied, biases": lambda: llama(
    tie_word_embeddings=True,
    attention_bias=True,
    rope_parameters={"rope_type": "default", "rope_theta": 500.0},
  ),
  "gpt2": lambda: gpt2(),
  "mamba": lambda: mamba(),
  "falcon_mamba": lambda: falcon_mamba(),
  "recurrent_gemma": lambda: recurrent_gemma(),
  "recurrent_gemma, biases": lambda: recurrent_gemma(
    attention_bias=True, lru_width=36
  ),
  "mamba2": lambda: mamba2(),
  "mamba2, tied": lambda: mamba2(tie_word_embeddings=True),
}


def noisy(theirs):
  torch.manual_seed(0)
  with torch.no_grad():
    for p in theirs.parameters():
      p.add_(0.1 * torch.randn_like(p))
  return theirs.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """name -> the model, and its folder; each is made once."""
  made = {}

  def get(name):
    if name not in made:
      path = tmp_path_factory.mktemp("folder")
      theirs = noisy(CASES[name]())
      theirs.save_pretrained(path)
      made[name] = theirs, path
    return made[name]

  return get


def into(path, run):
  return convert.into(path, run, configs.base_config())


@pytest.mark.parametrize("name", CASES)
def test_logits_and_gradients(name, folders, tmp_path):
  theirs, path = folders(name)
  found = into(path, tmp_path / "run")
  assert found["params"] >= sum(p.numel() for p in theirs.parameters())
  model = checkpoint.load_model(tmp_path / "run")
  tokens = np.random.default_rng(0).integers(0, V, (2, T))
  text = torch.tensor(tokens)
  out = theirs(text)
  targets = torch.roll(text, -1, 1)
  nll = torch.nn.functional.cross_entropy(
    out.logits.reshape(-1, V), targets.reshape(-1)
  )
  nll.backward()

  cfg = workdir.read(tmp_path / "run")["config"]
  params, buffers = lm.pure(model)

  @jax.jit
  def run(params):
    def loss(params):
      model = lm.fill(lm.abstract(cfg["model"]), params, buffers)
      nats, _ = model.loss(
        jnp.asarray(tokens), targets.numpy(), jnp.ones((2, T))
      )
      return nats

    logits, _ = lm.fill(model, params, buffers)(jnp.asarray(tokens))
    return logits, jax.value_and_grad(loss)(params)

  logits, (nats, gradient) = run(params)
  close(logits, out.logits.detach().numpy(), 1e-4)
  close(nats, nll.detach().numpy(), 1e-5)
  source = json.loads((tmp_path / "run" / convert.SOURCE).read_text())
  hf = source["config"]
  rules = convert.rules(hf, convert.find(hf, path), model)
  own = convert.backwards(
    rules, {p: np.asarray(g) for p, g in flatten_dict(gradient).items()}
  )
  grads = {n: p.grad.numpy() for n, p in theirs.named_parameters()}
  assert own.keys() == grads.keys()
  largest = max(np.abs(g).max() for g in grads.values())
  for key, g in own.items():
    assert np.abs(g - grads[key]).max() < 1e-4 * largest, key


@pytest.mark.parametrize("name", CASES)
def test_the_round_trip_is_exact(name, folders, tmp_path):
  _, path = folders(name)
  into(path, tmp_path / "run")
  convert.out_of(tmp_path / "run", tmp_path / "out")
  file = "model.safetensors"
  assert (
    load_file(path / file).keys() == load_file(tmp_path / "out" / file).keys()
  )
  for key, x in load_file(path / file).items():
    y = load_file(tmp_path / "out" / file)[key]
    assert x.dtype == y.dtype and np.array_equal(x, y), key
  configs_ = [
    json.loads((p / "config.json").read_text())
    for p in (path, tmp_path / "out")
  ]
  assert configs_[0] == configs_[1]


def test_shards_and_bfloat16(tmp_path):
  theirs = noisy(llama()).to(torch.bfloat16)
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
  table = checkpoint.load_model(tmp_path / "run").vocab.embedding[...]
  assert table.shape[0] == V + 1
  assert np.array_equal(table[V], table[5])


def broken(path, to, change):
  shutil.copytree(path, to)
  tensors = load_file(to / "model.safetensors")
  change(tensors)
  save_file(tensors, to / "model.safetensors")


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
  file = bad / "model.safetensors"
  file.write_bytes(file.read_bytes()[:-7])
  with pytest.raises(ValueError, match="model.safetensors is cut short"):
    into(bad, tmp_path / "run")
  file.rename(bad / "pytorch_model.bin")
  with pytest.raises(
    ValueError, match="pytorch_model.bin: pickled weights run"
  ):
    into(bad, tmp_path / "run")
  hf = json.loads((bad / "config.json").read_text())
  shutil.copy(path / "model.safetensors", bad)
  for fields, message in (
    ({"model_type": "lama"}, "'lama': did you mean 'llama'"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
    ({"rope_scaling": {"factor": 2}}, "rope_scaling"),
    (
      {"model_type": "mamba2", "time_step_limit": [0.0, 1.0]},
      r"time_step_limit=\[0.0, 1.0\]",
    ),
    ({"head_dim": 7}, "4 heads of head_dim=7 must make up hidden_size=24"),
  ):
    (bad / "config.json").write_text(json.dumps(hf | fields))
    with pytest.raises(ValueError, match=message):
      into(bad, tmp_path / "run")
  (bad / "config.json").unlink()
  with pytest.raises(ValueError, match="holds no config.json"):
    into(bad, tmp_path / "run")
  assert not (tmp_path / "run").exists()


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
  assert (tmp_path / "out" / "model.safetensors").exists()
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

  theirs = noisy(gpt2(vocab_size=learnt.vocab))
  theirs.save_pretrained(tmp_path / "fits")
  learnt.save(tmp_path / "fits" / "tokenizer.json")
  found = into(tmp_path / "fits", tmp_path / "whole")
  assert found["tokenizer"] == str(tmp_path / "fits" / "tokenizer.json")
  written = generate.stream(tmp_path / "whole", b"ab", temperature=0, size=9)
  assert sum(map(len, written)) >= 9
  convert.out_of(tmp_path / "whole", tmp_path / "out")
  assert (tmp_path / "out" / "tokenizer.json").exists()
