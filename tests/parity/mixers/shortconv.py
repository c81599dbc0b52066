"""shortconv = Lfm2ShortConv."""

import torch
from transformers import DynamicCache, Lfm2Config
from transformers.models.lfm2 import modeling_lfm2

from arch.mixers import shortconv as ours
from parity import Case

SOURCE = "transformers Lfm2ShortConv"
CASES = [
  dict(length=19, conv=3, bias=False),
  dict(length=7, conv=4, bias=True),
]
START = [dict(bias=False), dict(bias=True)]
D = 12


def config(dim, taps, bias):
  return Lfm2Config(
    vocab_size=8,
    hidden_size=dim,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    layer_types=["conv"],
    conv_L_cache=taps,
    conv_bias=bias,
  )


def weights(t):
  def part(name):
    bias = {"bias": t[f"{name}.bias"]} if f"{name}.bias" in t else {}
    w = t[f"{name}.weight"]
    return {"weight": (w[:, 0] if w.ndim == 3 else w).T} | bias

  return {name: part(name) for name in ("in_proj", "conv", "out_proj")}


def case(length, conv, bias):
  cfg = ours.Config(dim=D, depth=1, length=length, conv=conv, bias=bias)
  own = config(D, conv, bias)

  def decode(theirs):
    cache = DynamicCache(config=own)
    return lambda x: theirs(x, past_key_values=cache)

  theirs = modeling_lfm2.Lfm2ShortConv(own, layer_idx=0)
  return Case(ours.Mixer, cfg, theirs, weights, decode=decode, length=length)


def start(bias):
  cfg = ours.Config(dim=96, depth=1, length=8, bias=bias)

  def draw():
    with torch.no_grad():
      own = modeling_lfm2.Lfm2Model(config(cfg.dim, cfg.conv, bias))
    t = own.layers[0].conv.named_parameters()
    return weights({k: p.detach().numpy() for k, p in t})

  return ours.Mixer, cfg, draw
