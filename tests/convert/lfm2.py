"""Lfm2ForCausalLM."""

import json
from pathlib import Path

from transformers import Lfm2Config, Lfm2ForCausalLM

from convert import T, V

TYPES = ["conv", "full_attention", "conv", "conv", "full_attention"]


def config(**fields):
  return Lfm2Config(
    hidden_size=24,
    num_hidden_layers=5,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=T,
    vocab_size=V,
    pad_token_id=None,  # torch gives the pad's row no gradient
    **fields,
  )


def model(**fields):
  return Lfm2ForCausalLM(config(**fields))


class Old(Lfm2ForCausalLM):
  """Saved with the fields of the first releases."""

  def save_pretrained(self, path):
    super().save_pretrained(path)
    file = Path(path) / "config.json"
    hf = json.loads(file.read_text())
    for name in ("layer_types", "rope_parameters"):
      del hf[name]
    hf["tie_embedding"] = hf.pop("tie_word_embeddings")
    hf["block_ff_dim"] = hf.pop("intermediate_size")
    hf["full_attn_idxs"] = [1, 4]
    file.write_text(json.dumps(hf))


CASES = {
  "plain": lambda: model(
    intermediate_size=50,
    block_multiple_of=7,
    block_ffn_dim_multiplier=1.3,
    layer_types=TYPES,
    norm_eps=1e-3,
  ),
  "untied, biases, wider heads": lambda: model(
    intermediate_size=29,
    block_auto_adjust_ff_dim=False,
    full_attn_idxs=[0, 3],
    head_dim=10,
    conv_bias=True,
    conv_L_cache=4,
    tie_word_embeddings=False,
    rope_parameters={"rope_type": "default", "rope_theta": 500.0},
  ),
  "first release": lambda: Old(
    config(
      intermediate_size=50,
      block_multiple_of=8,
      layer_types=TYPES,
      tie_word_embeddings=False,
    )
  ),
}
