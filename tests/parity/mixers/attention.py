"""attention = the attention of eight releases, each with options of its own."""

import importlib

import jax.numpy as jnp
import numpy as np
import torch
from transformers import AutoConfig, DynamicCache, Qwen3Model

from arch.mixers import attention as ours
from parity import Case

SOURCE = (
  "transformers Qwen3Attention, LlamaAttention (biases), MistralAttention "
  "(window), PhiAttention (partial rotary, LayerNorm), OlmoeAttention (norm "
  "over all heads), JambaAttention (no positions), Qwen3NextAttention (gate), "
  "Zamba2Attention (beside the embedding, scale)"
)
CASES = [
  dict(release="qwen3", length=19),
  dict(release="qwen3", length=150),
  dict(release="llama", length=19),
  dict(release="mistral", length=70),
  dict(release="phi", length=19),
  dict(release="olmoe", length=19),
  dict(release="jamba", length=19),
  dict(release="qwen3_next", length=19),
  dict(release="zamba2", length=19),
]
START = [dict(std=None), dict(std=0.02)]
D, K = 12, 4
GROUPED = dict(num_attention_heads=6, num_key_value_heads=2, head_dim=K)
WINDOW = 11

# what transformers is told, and what we are
RELEASES = {
  "qwen3": (GROUPED, dict(heads=6, kv_heads=2)),
  "llama": (
    dict(GROUPED, attention_bias=True),
    dict(heads=6, kv_heads=2, qk_norm=False, bias=True),
  ),
  "mistral": (
    dict(GROUPED, sliding_window=WINDOW),
    dict(heads=6, kv_heads=2, qk_norm=False, window=WINDOW),
  ),
  "phi": (
    dict(
      num_attention_heads=3,
      num_key_value_heads=3,
      qk_layernorm=True,
      partial_rotary_factor=0.5,
    ),
    dict(rotary=0.5, norm="layer", eps=1e-5, bias=True),
  ),
  "olmoe": (
    dict(num_attention_heads=3, num_key_value_heads=1),
    dict(kv_heads=1, whole=True, eps=1e-5),
  ),
  "jamba": (
    dict(num_attention_heads=3, num_key_value_heads=1),
    dict(kv_heads=1, rotary=0, qk_norm=False),
  ),
  "qwen3_next": (
    dict(GROUPED, partial_rotary_factor=0.5),
    dict(heads=6, kv_heads=2, rotary=0.5, norm="rms_plus", gate=True),
  ),
  "zamba2": (
    dict(
      num_attention_heads=6,
      use_mem_rope=True,
      layers_block_type=["hybrid"],
    ),
    dict(heads=6, qk_norm=False, scale=(K / 2) ** -0.5, embedding=True),
  ),
}


class Beside(torch.nn.Module):
  """Zamba2's, to which x is its own embedding."""

  def __init__(self, own, layer_idx):
    super().__init__()
    cls, _ = found("zamba2")
    self.attn = cls(own, layer_idx=layer_idx)

  def forward(self, x, **extra):
    return self.attn(torch.cat([x, x], -1), layer_idx=0, **extra)


class Own(ours.Mixer):
  def __call__(self, x, reset, state):
    return super().__call__(jnp.concatenate([x, x], -1), reset, state)


def found(release):
  path = f"transformers.models.{release}.modeling_{release}"
  module = importlib.import_module(path)
  name = {"qwen3_next": "Qwen3Next"}.get(release, release.title())
  rotary = getattr(module, f"{name}RotaryEmbedding", None)
  return getattr(module, f"{name}Attention"), rotary


def weights(t):
  """Ours, from theirs by name."""

  def joined(part, turn):
    q = t[f"q_proj.{part}"]
    k, v = (t[f"{n}_proj.{part}"] for n in "kv")
    if len(t[f"{out}.weight"].T) == len(q):
      return turn(np.concatenate([q, k, v], 0))
    q, z = np.split(q.reshape(-1, 2 * K, *q.shape[1:]), 2, 1)  # by head
    q, z = (x.reshape(-1, *x.shape[2:]) for x in (q, z))
    return turn(np.concatenate([q, k, v, z], 0))

  t = {name.removeprefix("attn."): x for name, x in t.items()}
  out = "dense" if "dense.weight" in t else "o_proj"
  made = {"qkv": {"weight": joined("weight", np.transpose)}}
  made["out_proj"] = {"weight": t[f"{out}.weight"].T}
  if "q_proj.bias" in t:
    made["qkv"]["bias"] = joined("bias", np.array)
    made["out_proj"]["bias"] = t[f"{out}.bias"]
  for n in "qk":
    for norm in (f"{n}_norm", f"{n}_layernorm"):
      for part in ("weight", "bias"):
        if f"{norm}.{part}" in t:
          made.setdefault(f"{n}_norm", {})[part] = t[f"{norm}.{part}"]
  return made


def case(release, length):
  told, fields = RELEASES[release]
  own = AutoConfig.for_model(
    release,
    hidden_size=D,
    num_hidden_layers=1,
    attn_implementation="eager",
    **told,
  )
  cls, rotary = found(release)
  cls = Beside if "embedding" in fields else cls
  rotary = rotary and rotary(own)
  t = torch.arange(length)
  far = t[:, None] - t[None]
  hidden = (far < 0) | (far >= fields.get("window", length))
  mask = torch.zeros(length, length).masked_fill(hidden, -torch.inf)

  def extra(at):
    if rotary is None:
      return {}
    return dict(position_embeddings=rotary(torch.zeros(1), at[None]))

  def call(m, x):
    return m(x, attention_mask=mask, **extra(t))[0]

  def decode(m):
    cache = DynamicCache(config=own if "window" in fields else None)
    seen = iter(t)

    def step(x):
      at = next(seen)[None]
      kw = dict(attention_mask=None, past_key_values=cache, **extra(at))
      return m(x, **kw)[0]

    return step

  return Case(
    Own if "embedding" in fields else ours.Mixer,
    ours.Config(dim=D, depth=1, length=length, head=K, **fields),
    cls(own, layer_idx=0),
    weights,
    call=call,
    decode=decode,
    length=length,
  )


def start(std):
  dim, depth, H, G, K = 96, 3, 6, 2, 16
  cfg = ours.Config(dim=dim, depth=depth, length=8, head=K, kv_heads=G, std=std)
  own = AutoConfig.for_model(
    "qwen3",
    hidden_size=dim,
    head_dim=K,
    num_attention_heads=H,
    num_key_value_heads=G,
    num_hidden_layers=1,
    vocab_size=2,
    intermediate_size=2,
  )

  def theirs():  # Qwen3's, as released by Hugging Face
    t = Qwen3Model(own).layers[0].self_attn.named_parameters()
    return weights({name: p.detach().numpy() for name, p in t})

  def cut(d_in, d_out, scale):
    """A normal, cut at two of its standard deviations, of this scale then."""
    std = scale / np.sqrt(d_in) / 0.87962566  # of what the cut leaves of 1
    w = torch.empty(d_in, d_out)
    return torch.nn.init.trunc_normal_(w, 0, std, -2 * std, 2 * std).numpy()

  def published():
    return theirs() | {
      "qkv": {"weight": cut(dim, (H + 2 * G) * K, 1)},
      "out_proj": {"weight": cut(H * K, dim, (2 * depth) ** -0.5)},
    }

  return ours.Mixer, cfg, published if std is None else theirs
