"""mla = DeepseekV3Attention."""

import numpy as np
import torch
from transformers import DeepseekV3Config, DynamicCache
from transformers.models.deepseek_v3 import modeling_deepseek_v3

from arch.mixers import mla as ours
from parity import Case

SOURCE = "transformers DeepseekV3Attention"
CASES = [
  dict(query_rank=7, interleave=True, length=70),
  dict(query_rank=None, interleave=False, length=19),
]
START = [dict(query_rank=48), dict(query_rank=None)]
D, H, K, V, C, R = 12, 3, 4, 5, 8, 6


def case(query_rank, interleave, length):
  cfg = ours.Config(
    dim=D,
    depth=1,
    length=length,
    head=K,
    heads=H,
    value=V,
    rank=C,
    query_rank=query_rank,
    rotary=R,
  )
  own = DeepseekV3Config(
    hidden_size=D,
    num_attention_heads=H,
    num_key_value_heads=H,
    qk_nope_head_dim=K,
    qk_rope_head_dim=R,
    v_head_dim=V,
    kv_lora_rank=C,
    q_lora_rank=query_rank,
    rope_interleave=interleave,
    num_hidden_layers=1,
    attn_implementation="eager",
  )
  angles = modeling_deepseek_v3.DeepseekV3RotaryEmbedding(own)
  later = torch.ones(length, length, dtype=torch.bool).triu(1)
  mask = torch.zeros(length, length).masked_fill(later, -torch.inf)
  # pairs (0, 1), (2, 3) ... become (0, R / 2), (1, R / 2 + 1) ...
  halves = np.r_[0:R:2, 1:R:2] if interleave else np.arange(R)

  def weights(t):
    def turned(w, heads, width):
      w = w.reshape(heads, width, -1)
      return np.concatenate([w[:, :-R], w[:, -R:][:, halves]], 1)

    down = turned(t["kv_a_proj_with_mqa.weight"], 1, C + R)[0]
    name = "q_b_proj" if query_rank else "q_proj"
    q = turned(t[f"{name}.weight"], H, K + R).reshape(H * (K + R), -1)
    made = {
      "norm": {"weight": t["kv_a_layernorm.weight"]},
      "up": {"weight": t["kv_b_proj.weight"].T},
      "out_proj": {"weight": t["o_proj.weight"].T},
    }
    if query_rank:
      made["q_norm"] = {"weight": t["q_a_layernorm.weight"]}
      made["q_up"] = {"weight": q.T}
      q = t["q_a_proj.weight"]
    return made | {"in_proj": {"weight": np.concatenate([q, down], 0).T}}

  def call(m, x):
    at = angles(x, torch.arange(length)[None])
    return m(x, position_embeddings=at, attention_mask=mask)[0]

  def decode(m):
    cache, seen = DynamicCache(), iter(range(length))

    def step(x):
      at = angles(x, torch.tensor([[next(seen)]]))
      kw = dict(attention_mask=None, past_key_values=cache)
      return m(x, position_embeddings=at, **kw)[0]

    return step

  return Case(
    ours.Mixer,
    cfg,
    modeling_deepseek_v3.DeepseekV3Attention(own, layer_idx=0),
    weights,
    call=call,
    decode=decode,
    length=length,
  )


def start(query_rank):
  """Section 3.1.2 of DeepSeek-V2, 4.2 of DeepSeek-V3."""
  dim, H, K, V, C, R = 96, 4, 24, 32, 40, 16
  cfg = ours.Config(
    dim=dim,
    depth=3,
    length=8,
    head=K,
    value=V,
    rank=C,
    query_rank=query_rank,
    rotary=R,
  )

  def normal(*shape):
    w = torch.nn.init.normal_(torch.empty(shape), std=0.006)
    return {"weight": w.numpy()}

  def draw():
    made = {
      "in_proj": normal(dim, (query_rank or H * (K + R)) + C + R),
      "norm": {"weight": np.ones(C)},
      "up": normal(C, H * (K + V)),
      "out_proj": normal(H * V, dim),
    }
    if query_rank:
      made["q_norm"] = {"weight": np.ones(query_rank)}
      made["q_up"] = normal(query_rank, H * (K + R))
    return made

  return ours.Mixer, cfg, draw
