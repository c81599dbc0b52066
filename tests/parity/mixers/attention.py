"""attention = Qwen3Attention."""

import numpy as np
import torch
from transformers import Qwen3Config
from transformers.models.qwen3 import modeling_qwen3

from arch.mixers import attention as ours
from parity import Case

SOURCE = "transformers Qwen3Attention"
CASES = [dict(length=19)]
START = []
B, D = 2, 12


def case(length):
  cfg = ours.Config(dim=D, depth=1, length=length, head=4, kv_heads=1)
  own = Qwen3Config(
    hidden_size=D,
    head_dim=4,
    num_attention_heads=3,
    num_key_value_heads=1,
    num_hidden_layers=1,
    attn_implementation="eager",
  )
  angles = modeling_qwen3.Qwen3RotaryEmbedding(own)
  later = torch.ones(length, length, dtype=torch.bool).triu(1)
  extra = dict(
    position_embeddings=angles(torch.zeros(1), torch.arange(length)[None]),
    attention_mask=torch.zeros(length, length).masked_fill(later, -torch.inf),
  )

  def weights(t):
    qkv = [t[f"{n}_proj.weight"] for n in "qkv"]
    return {
      "qkv": {"weight": np.concatenate(qkv, 0).T},
      "q_norm": {"weight": t["q_norm.weight"]},
      "k_norm": {"weight": t["k_norm.weight"]},
      "out_proj": {"weight": t["o_proj.weight"].T},
    }

  theirs = modeling_qwen3.Qwen3Attention(own, layer_idx=0)
  return Case(
    ours.Mixer,
    cfg,
    theirs,
    weights,
    call=lambda m, x: m(x, **extra)[0],
    length=length,
  )
