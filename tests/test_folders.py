"""What lies in a checkpoint's folder: which files and fields count, and what
each tensor is compared with."""

import json

import fuzz
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import configs
from train import convert
from train.checkpoint import load_model
from train.convert import fields, types

KINDS = sorted(fuzz.CONFIGS)
EMBED = "model.embed_tokens.weight"


shapes_once = pytest.fixture(autouse=True)(fuzz.shapes_once)


@pytest.fixture
def folder(tmp_path):
  return lambda kind="llama", shards=1: fuzz.make(kind, tmp_path / kind, shards)


def tensors(path) -> dict:
  found = {}
  for file in sorted(path.glob("*.safetensors")):
    found |= load_file(file)
  return found


def rewrite(path, change, **raw):
  """Changes a folder's tensors, and fields of its config.json."""
  config = json.loads((path / "config.json").read_text()) | raw
  found = tensors(path)
  change(found)
  fuzz.write(path, config, found)


def refuses(path, *words):
  with pytest.raises(ValueError) as e:
    convert.model_of(path)
  text = str(e.value)
  assert "\n" not in text and all(word in text for word in (str(path), *words))


def there_and_back(path, tmp_path):
  """The folder that is written again."""
  convert.into(path, tmp_path / "run", configs.base_config())
  convert.out_of(tmp_path / "run", tmp_path / "out")
  one, two = tensors(path), tensors(tmp_path / "out")
  assert one.keys() == two.keys()
  for name in one:
    assert one[name].dtype == two[name].dtype, name
    assert np.array_equal(one[name], two[name]), name


def test_a_tied_readout_is_the_embedding(folder, tmp_path):
  path = folder()
  rewrite(path, lambda t: t.update({"lm_head.weight": t[EMBED].copy()}))
  there_and_back(path, tmp_path)
  rewrite(path, lambda t: t.update({"lm_head.weight": 2 * t[EMBED]}))
  refuses(path, "lm_head.weight is not equal to", EMBED)
  rewrite(path, lambda t: None, tie_word_embeddings=False)
  read = convert.model_of(path)
  readout = read.state["params"]["vocab"]["readout"]["rows"]
  assert np.array_equal(readout, 2 * tensors(path)[EMBED])


def test_shared_blocks_that_are_there_again(folder, tmp_path):
  path = folder("zamba2")
  first, third = (f"model.layers.{i}.shared_transformer." for i in (1, 3))

  def again(t):
    t |= {n.replace(first, third): t[n] for n in t if n.startswith(first)}

  rewrite(path, again)
  there_and_back(path, tmp_path)
  name = third + "feed_forward.down_proj.weight"
  rewrite(path, lambda t: t.update({name: t[name] + 1}))
  refuses(path, f"{name} is not equal to {name.replace(third, first)}")


def test_constants_that_old_versions_saved(folder, tmp_path):
  llama, gpt2 = folder(), folder("gpt2")
  angles = "model.layers.1.self_attn.rotary_emb.inv_freq"
  right = np.float32([1, 500**-0.5])
  for dtype in ("float16", "float32"):
    rewrite(llama, lambda t, d=dtype: t.update({angles: right.astype(d)}))
    convert.model_of(llama)
  there_and_back(llama, tmp_path)
  for wide, base in ((100, 1e4), (96, 1e6), (64, 1e7)):  # as torch makes them
    exact = base ** -(np.arange(0, wide, 2) / wide)
    found = 1 / np.float32(base) ** (np.arange(0, wide, 2, np.float32) / wide)
    for dtype in (np.float32, np.float16):
      assert convert.close(found.astype(dtype), np.float32(exact))
  rewrite(llama, lambda t: t.update({angles: right / 2}))
  refuses(llama, angles)

  own = "transformer.h.0.attn."
  mask = np.tril(np.ones((1, 1, 21, 21), np.uint8))
  masks = {f"{own}bias": mask, f"{own}masked_bias": np.float32(-1e4)}
  rewrite(gpt2, lambda t: t.update(masks))
  convert.model_of(gpt2)
  rewrite(gpt2, lambda t: t.update({f"{own}masked_bias": np.float32(7)}))
  refuses(gpt2, f"{own}masked_bias")
  rewrite(gpt2, lambda t: t.update(masks | {f"{own}bias": 1 - mask}))
  refuses(gpt2, f"{own}bias")


def test_what_predicts_further_tokens_is_kept(folder, tmp_path):
  path = folder("qwen3_next")
  rewrite(path, lambda t: t.update({"mtp.fc.weight": np.ones((3, 4), np.int8)}))
  assert "not used: mtp.fc.weight" in " ".join(convert.model_of(path).notes)
  there_and_back(path, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_types_saved_from_their_base_model(kind, folder, tmp_path):
  """Their names lack a prefix; what has a readout of its own lacks that."""
  path = folder(kind)
  whole = convert.model_of(path)
  prefix = types.find({"model_type": kind}, path).PREFIX + "."
  found = tensors(path)
  bare = {name.removeprefix(prefix): t for name, t in found.items()}
  fuzz.write(path, json.loads((path / "config.json").read_text()), bare)
  read = convert.model_of(path)
  assert whole.model == read.model
  for name, part in convert.flatten_dict(whole.state).items():
    assert np.array_equal(part, convert.flatten_dict(read.state)[name])
  if kind == "gpt2":
    there_and_back(path, tmp_path)


def test_with_an_index_only_its_files_are_read(folder):
  path = folder(shards=2)
  right = convert.model_of(path)
  stray = {EMBED: np.zeros((fuzz.V, 12), np.float32)}
  save_file(stray, path / "old_weights.safetensors")
  read = convert.model_of(path)
  one, two = (
    x.state["params"]["vocab"]["embedding"]["rows"] for x in (right, read)
  )
  assert np.array_equal(one, two)
  save_file(stray, path / convert.WHOLE)  # which transformers would take
  refuses(path, convert.WHOLE, convert.INDEX)


def test_without_one_a_tensor_is_in_one_file(folder):
  path = folder()
  own = {EMBED: tensors(path)[EMBED]}
  for name in ("adapter_model", "consolidated.00"):
    save_file(own, path / f"{name}.safetensors")
  convert.model_of(path)
  save_file(own, path / "a.safetensors")
  refuses(path, EMBED, "a.safetensors", convert.WHOLE)


@pytest.mark.parametrize(
  "name", ["../part-0.safetensors", "/x.safetensors", "config.json", ".."]
)
def test_names_of_files_stay_in_the_folder(name, folder, tmp_path):
  path = folder(shards=2)
  convert.into(path, tmp_path / "run", configs.base_config())
  index = path / convert.INDEX
  text = index.read_text()
  index.write_text(text.replace("part-0.safetensors", name))
  (tmp_path / "part-0.safetensors").write_bytes(
    (path / "part-0.safetensors").read_bytes()
  )
  refuses(path, repr(name))
  source = tmp_path / "run" / convert.SOURCE
  text = source.read_text().replace("part-0.safetensors", name)
  source.write_text(text)
  before = {p for p in tmp_path.rglob("*")}
  with pytest.raises(ValueError, match="names the file"):
    convert.out_of(tmp_path / "run", tmp_path / "out")
  assert before == {p for p in tmp_path.rglob("*")}


def test_numbers_that_are_not_finite(folder):
  path = folder()
  rewrite(path, lambda t: t[EMBED].__setitem__((5, 3), np.inf))
  refuses(path, f"{EMBED} holds numbers that are not finite")


def test_quantised_weights(folder):
  path = folder()
  file = path / convert.WHOLE
  data = file.read_bytes()
  file.write_bytes(data.replace(b'"F32"', b'"F8_E5M2"'.ljust(5), 1))
  refuses(path)
  rewrite_header(file, data, EMBED, "F8_E4M3")
  refuses(path, EMBED, "F8_E4M3")


def rewrite_header(file, data, name, dtype):
  """A tensor of one byte a number, of a quarter of the rows."""
  size = int.from_bytes(data[:8], "little")
  header = json.loads(data[8 : 8 + size])
  rows, width = header[name]["shape"]
  header[name] |= {"dtype": dtype, "shape": [4 * rows, width]}
  text = json.dumps(header).encode()
  file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


@pytest.mark.parametrize(
  ("raw", "message"),
  [
    ({"bos_token_id": 260}, "bos_token_id=260 is outside of vocab_size=260"),
    (
      {"bos_token_id": -1},
      "bos_token_id is -1, not a whole number of 0",
    ),
    ({"bos_token_id": [1]}, "bos_token_id is [1], not"),
    ({"hidden_size": None}, "hidden_size is None, not a whole number above 0"),
    ({"hidden_size": True}, "hidden_size is True, not"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, not a finite"),
    ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5', not"),
    ({"num_hidden_layers": 10**9}, "more than the 20 tensors"),
    ({"num_attention_heads": 2**40}, "num_attention_heads=1099511627776 is"),
    ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling: rope_type='yarn'"),
    ({"rope_scaling": [1]}, "rope_scaling is [1], not an object"),
    ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4}"),
    ({"model_type": ["llama"]}, "unknown model_type ['llama']"),
  ],
)
def test_fields_that_cannot_be(raw, message, folder):
  path = folder()
  rewrite(path, lambda t: None, **raw)
  refuses(path, message)


def test_fields_that_change_nothing(folder):
  path = folder()
  right = convert.model_of(path)
  for raw in (
    {"rope_scaling": {"rope_type": "default"}},
    {"rope_scaling": None, "head_dim": None, "num_key_value_heads": None},
    {"rope_parameters": {"type": "default", "rope_theta": 500.0}},
    {"torch_dtype": "float16", "use_cache": False, "attention_dropout": 0.1},
  ):
    rewrite(path, lambda t: None, **raw)
    read = convert.model_of(path)
    assert read.model == right.model and read.notes == right.notes
  rewrite(path, lambda t: None, sliding_window=4)
  assert "not read: sliding_window" in " ".join(convert.model_of(path).notes)


def test_fields_that_are_left_out(folder):
  path = folder("olmoe")
  config = json.loads((path / "config.json").read_text())
  del config["rms_norm_eps"], config["bos_token_id"]
  (path / "config.json").write_text(json.dumps(config))
  read = convert.model_of(path)
  assert read.model["norm_eps"] == 1e-5
  assert "rms_norm_eps=1e-05" in " ".join(read.notes)
  assert not np.any(read.state["params"]["vocab"]["embedding"]["rows"][-1])


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "rwkv7"])
def test_fields_and_defaults_are_those_of_transformers(kind):
  """Every field there is read, of no influence, or refused."""
  transformers = pytest.importorskip("transformers")
  import dataclasses

  theirs = transformers.CONFIG_MAPPING[kind]
  module = types.find({"model_type": kind}, "")
  own, names = module.FIELDS, getattr(module, "NAMES", {})
  free = fields.INERT | getattr(module, "UNREAD", set())
  seen = {}
  for field in dataclasses.fields(theirs):
    seen.setdefault(names.get(field.name, field.name), field)
  for name, field in seen.items():
    if name in own:
      given = own[name]
      given = given.default if isinstance(given, fields.Field) else given
      assert given == field.default, name
    else:
      assert name in free | fields.COMMON.keys() | {*fields.ROPE}, name
  for other, name in theirs.attribute_map.items():
    if name in seen:
      assert names.get(other, other) in own, other
  if "rope_theta" in own:
    default = getattr(theirs, "default_theta", 1e4)
    assert own["rope_theta"] == default


def test_a_model_is_made_of_what_is_read(folder, tmp_path):
  path = folder("rwkv7")
  convert.into(path, tmp_path / "run", configs.base_config())
  table = load_model(tmp_path / "run").vocab.embedding.rows[...]
  assert np.array_equal(table[-1], table[3])
