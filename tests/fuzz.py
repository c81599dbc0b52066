"""Small checkpoints of every type, without torch, and what may befall a file.

Sizes are those of tests/convert, where each type is held against its library.
"""

import json
import math
import re
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from arch import lm
from train import convert
from train.convert import fields, types
from train.convert.rules import Absent, backwards

V = 260  # symbols: all bytes, and some to spare

SMALL = dict(hidden_size=12, num_hidden_layers=2, vocab_size=V, bos_token_id=3)
HEADS = SMALL | dict(
  intermediate_size=7,
  num_attention_heads=3,
  num_key_value_heads=3,
  rms_norm_eps=1e-3,
  max_position_embeddings=21,
)
MAMBA = SMALL | dict(
  state_size=5, conv_kernel=3, expand=2, layer_norm_epsilon=1e-3
)
CONFIGS = dict(
  llama=HEADS | dict(rope_theta=500.0, tie_word_embeddings=True),
  gpt2=dict(
    n_embd=12,
    n_layer=2,
    n_head=3,
    n_positions=21,
    vocab_size=V,
    bos_token_id=3,
    layer_norm_epsilon=1e-3,
  ),
  nanochat=HEADS | dict(final_logit_softcapping=0.5),
  olmoe=HEADS | dict(num_experts=3, num_experts_per_tok=2),
  mamba=MAMBA | dict(time_step_rank=3),
  mamba2=MAMBA | dict(num_heads=6, head_dim=4, n_groups=2),
  falcon_mamba=MAMBA | dict(time_step_rank=3, mixer_rms_eps=1e-4),
  recurrent_gemma=SMALL
  | dict(
    num_hidden_layers=3,
    intermediate_size=10,
    num_attention_heads=3,
    num_key_value_heads=1,
    attention_window_size=5,
    conv1d_width=3,
    logits_soft_cap=0.5,
  ),
  jamba=HEADS
  | dict(
    num_experts=3,
    num_experts_per_tok=2,
    attn_layer_period=2,
    attn_layer_offset=1,
    mamba_d_state=5,
    mamba_d_conv=3,
    mamba_dt_rank=3,
  ),
  zamba2=SMALL
  | dict(
    num_hidden_layers=4,
    layers_block_type=["linear_attention", "hybrid", "hybrid", "hybrid"],
    num_mem_blocks=2,
    mamba_d_state=5,
    mamba_d_conv=3,
    mamba_ngroups=2,
    n_mamba_heads=6,
    intermediate_size=7,
    num_attention_heads=3,
    adapter_rank=3,
  ),
  qwen3_next=HEADS
  | dict(
    head_dim=8,
    layer_types=["linear_attention", "full_attention"],
    mlp_only_layers=[1],
    moe_intermediate_size=5,
    shared_expert_intermediate_size=6,
    linear_conv_kernel_dim=3,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=3,
    linear_value_head_dim=6,
    num_experts=3,
    num_experts_per_tok=2,
    rope_parameters={"rope_type": "default", "rope_theta": 500.0},
  ),
  kimi_linear=HEADS
  | dict(
    moe_intermediate_size=5,
    kv_lora_rank=8,
    qk_nope_head_dim=3,
    qk_rope_head_dim=6,
    v_head_dim=4,
    num_experts=3,
    num_experts_per_token=2,
    num_shared_experts=2,
    linear_attn_config=dict(
      full_attn_layers=[2],
      kda_layers=[1],
      num_heads=3,
      head_dim=5,
      short_conv_kernel_size=3,
    ),
  ),
  lfm2=SMALL
  | dict(
    intermediate_size=20,
    block_multiple_of=7,
    num_attention_heads=3,
    num_key_value_heads=1,
    layer_types=["conv", "full_attention"],
    norm_eps=1e-3,
  ),
  xlstm=SMALL
  | dict(
    num_heads=3, ffn_round_up_to_multiple_of=5, norm_eps=1e-3, gate_soft_cap=2.0
  ),
  rwkv7=SMALL
  | dict(
    head_dim=4,
    intermediate_size=19,
    decay_low_rank_dim=5,
    gate_low_rank_dim=7,
    a_low_rank_dim=3,
    v_low_rank_dim=2,
    norm_eps=1e-3,
  ),
)


SHAPES = {}


def shapes_once(monkeypatch):
  """Models that differ in floats have the same shapes, which take a while."""
  abstract = lm.abstract

  def cached(config):
    key = re.sub(r"\d+\.\d*(e-?\d+)?|\d+e-?\d+", "x", repr(config))
    if key not in SHAPES:
      SHAPES[key] = abstract(config)
    return SHAPES[key]

  monkeypatch.setattr(lm, "abstract", cached)


def make(kind: str, path: Path, shards: int = 1) -> Path:
  """A folder of a type: random tensors of the shapes that its rules have."""
  path.mkdir(parents=True)
  raw = {"model_type": kind} | CONFIGS[kind]
  module = types.find(raw, path)
  hf, _ = fields.read(raw, module, range(1000), path)
  hf["tensors"] = frozenset()
  model = lm.abstract(module.model(hf))
  found = convert.every_rule(hf, module, model)
  draw = np.random.default_rng(0)
  arrays = {
    p: np.zeros(leaf.shape, np.float32)
    if isinstance(found[p], Absent)
    else draw.normal(0, 0.3, leaf.shape).astype(np.float32)
    for p, leaf in convert.leaves(model).items()
  }
  write(path, raw, backwards(found, arrays), shards)
  return path


def write(path: Path, raw: dict, tensors: dict, shards: int = 1):
  """config.json, tensors, and their index where there are several shards."""
  (path / "config.json").write_text(json.dumps(raw, indent=1))
  names = sorted(tensors)
  files = (
    [convert.WHOLE]
    if shards == 1
    else [f"part-{i}.safetensors" for i in range(shards)]
  )
  where = {name: files[i % shards] for i, name in enumerate(names)}
  for file in files:
    part = {
      n: np.asarray(tensors[n], order="C") for n in names if where[n] == file
    }
    save_file(part, path / file)
  if shards > 1:
    (path / convert.INDEX).write_text(json.dumps({"weight_map": where}))


# what any value of JSON may become
VALUES = (
  None,
  True,
  False,
  0,
  1,
  -1,
  2,
  7,
  1.5,
  -0.5,
  2**31,
  10**30,
  1e300,
  math.nan,
  math.inf,
  "",
  "x",
  "8",
  [],
  [1],
  [None, "x"],
  {},
  {"x": 1},
)


def places(value, path=()):
  """Where in a value of JSON each part is."""
  if path:
    yield path
  if isinstance(value, dict | list):
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in parts:
      yield from places(part, (*path, key))


def changed(value, draw):
  """JSON with one part dropped, replaced, wrapped or doubled, and in words
  what was done."""
  value = json.loads(json.dumps(value))
  found = list(places(value))
  path = found[draw.integers(len(found))]
  *head, last = path
  inner = value
  for key in head:
    inner = inner[key]
  how = draw.integers(8)
  if how == 0:
    del inner[last]
    return value, (path, "dropped")
  if how == 1:
    new = [inner[last]]
  elif how == 2:
    new = {"value": inner[last]}
  elif how == 3 and isinstance(inner[last], int | float):
    new = -inner[last]
  else:
    new = VALUES[draw.integers(len(VALUES))]
  inner[last] = new
  return value, (path, new)


def torn(data: bytes, draw) -> bytes:
  """A file cut at some byte, or with one flipped."""
  at = int(draw.integers(len(data)))
  if draw.integers(2):
    return data[:at]
  return (
    data[:at] + bytes([data[at] ^ (1 << draw.integers(8))]) + data[at + 1 :]
  )
