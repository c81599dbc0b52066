"""mlstm = xLSTMLayer, in its form without kernels."""

import numpy as np
import torch
from transformers import xLSTMConfig
from transformers.models.xlstm import modeling_xlstm

from arch.mixers import mlstm as ours
from parity import Case

SOURCE = "transformers xLSTMLayer"
CASES = [
  dict(length=70, dim=128, heads=4, scale=0.2),
  # small enough for the other side of the maximum
  dict(length=19, dim=64, heads=2, key=32, scale=0.05),
  dict(
    length=70,
    dim=24,
    heads=3,
    key=5,
    value=7,
    cap=2.0,
    eps=2e-4,
    norm_eps=1e-2,
    scale=0.2,
  ),
]
START = [dict(dim=128, heads=4)]


def both(**fields):
  cfg = ours.Config(length=1, depth=3, **fields)
  own = xLSTMConfig(
    hidden_size=cfg.dim,
    num_heads=cfg.heads,
    qk_dim_factor=cfg.heads * cfg.K / cfg.dim,
    v_dim_factor=cfg.heads * cfg.V / cfg.dim,
    gate_soft_cap=cfg.cap,
    eps=cfg.eps,
    norm_eps=cfg.eps if cfg.norm_eps is None else cfg.norm_eps,
    num_hidden_layers=cfg.depth,
    chunk_size=32,
    vocab_size=3,
  )
  return cfg, own


def weights(t):
  maps = [t[f"{n}.weight"] for n in ("q", "k", "v", "ogate_preact")]
  gates, bias = (
    np.concatenate([t[f"{n}gate_preact.{part}"] for n in "if"], 0)
    for part in ("weight", "bias")
  )
  return {
    "in_proj": {"weight": np.concatenate(maps, 0).T},
    "gates": {"weight": gates.T},
    "gates_bias": bias,
    "norm": {"weight": t["multihead_norm.weight"].reshape(len(bias) // 2, -1)},
    "out_proj": {"weight": t["out_proj.weight"].T},
  }


def case(length, scale, **fields):
  cfg, own = both(**fields)

  def decode(theirs):
    state = [None]

    def step(x):
      y, state[0] = theirs(x, state[0])
      return y

    return step

  return Case(
    ours.Mixer,
    cfg,
    modeling_xlstm.xLSTMLayer(own),
    weights,
    decode=decode,
    length=length,
    scale=scale,
  )


def start(**fields):
  cfg, own = both(**fields)

  def draw():
    with torch.no_grad():
      model = modeling_xlstm.xLSTMModel(own)
    named = model.blocks[0].mlstm_layer.named_parameters()
    return weights({name: p.detach().numpy() for name, p in named})

  return ours.Mixer, cfg, draw
