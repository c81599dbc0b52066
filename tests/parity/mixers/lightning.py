"""lightning = MiniMaxLightningAttention."""

import numpy as np
from transformers import MiniMaxConfig
from transformers.models.minimax import modeling_minimax

from arch.mixers import lightning as ours
from parity import Case

SOURCE = "transformers MiniMaxLightningAttention"
CASES = [
  dict(length=70, layer=1, depth=3, dim=12, head=4),
  dict(length=19, layer=3, depth=4, dim=12, head=6, heads=4),
  dict(length=19, layer=0, depth=1, dim=12, head=6),
]
START = [dict(depth=3, dim=96, head=32)]


def both(**fields):
  cfg = ours.Config(length=1, **fields)
  own = MiniMaxConfig(
    hidden_size=cfg.dim,
    head_dim=cfg.head,
    num_attention_heads=cfg.H,
    num_key_value_heads=1,
    num_hidden_layers=cfg.depth,
    layer_types=["linear_attention"] * cfg.depth,
    block_size=16,
    intermediate_size=8,
    num_local_experts=1,
    num_experts_per_tok=1,
    vocab_size=3,
  )

  def weights(t):
    qkv = t["qkv_proj.weight"].reshape(cfg.H, 3, cfg.head, cfg.dim)
    qkv = qkv.swapaxes(0, 1).reshape(-1, cfg.dim)
    maps = [qkv, t["output_gate.weight"]]
    return {
      "in_proj": {"weight": np.concatenate(maps, 0).T},
      "norm": {"weight": t["norm.weight"]},
      "out_proj": {"weight": t["out_proj.weight"].T},
    }

  return cfg, own, weights


def case(length, layer, **fields):
  cfg, own, weights = both(**fields)
  extra = dict(position_embeddings=None, attention_mask=None)

  def make(cfg, *, layer, rngs, at=layer):
    return ours.Mixer(cfg, layer=layer + at, rngs=rngs)

  def decode(theirs):
    cache = modeling_minimax.MiniMaxCache()
    return lambda x: theirs(x, past_key_values=cache, **extra)[0]

  return Case(
    make,
    cfg,
    modeling_minimax.MiniMaxLightningAttention(own, layer_idx=layer),
    weights,
    call=lambda m, x: m(x, **extra)[0],
    decode=decode,
    length=length,
  )


def start(**fields):
  cfg, own, weights = both(**fields)

  def draw():
    model = modeling_minimax.MiniMaxModel(own)
    named = model.layers[0].self_attn.named_parameters()
    return weights({name: p.detach().numpy() for name, p in named})

  return ours.Mixer, cfg, draw
