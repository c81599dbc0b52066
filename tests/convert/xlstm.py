"""xLSTMForCausalLM."""

import json
from pathlib import Path

import torch
from transformers import xLSTMConfig, xLSTMForCausalLM
from transformers.models.xlstm.modeling_xlstm import xLSTMCache

from convert import V


class Old(xLSTMForCausalLM):
  """Saved with its sizes under the names of xLSTM 7B's config."""

  def save_pretrained(self, path):
    super().save_pretrained(path)
    file = Path(path) / "config.json"
    hf = json.loads(file.read_text())
    del hf["hidden_size"], hf["num_hidden_layers"]
    file.write_text(json.dumps(hf))


def model(made=xLSTMForCausalLM, **fields):
  return made(
    xLSTMConfig(
      num_hidden_layers=3,
      chunk_size=8,
      use_cache=False,  # or else it has one always
      vocab_size=V,
      **fields,
    )
  )


def cache(config):
  return xLSTMCache(config, 2, torch.float32)


CASES = {
  # its cache is wrong unless keys and values are multiples of 64
  "plain": lambda: model(
    hidden_size=128, num_heads=2, output_logit_soft_cap=0.5
  ),
  "other widths": lambda: model(
    Old,
    hidden_size=24,
    num_heads=3,
    qk_dim_factor=0.625,
    v_dim_factor=0.875,
    ffn_proj_factor=1.3,
    ffn_round_up_to_multiple_of=5,
    gate_soft_cap=2.0,
    eps=2e-4,
    norm_eps=1e-2,
    bos_token_id=5,
  ),
}
NO_CACHE = ("other widths",)
