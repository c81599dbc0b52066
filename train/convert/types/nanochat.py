"""nanochat: norms without weights, relu squared, capped logits.

transformers, models/nanochat. Its rotary angles have the other sign, which is
ours where the halves of every query and key are swapped.
"""

import numpy as np

from train.convert.fields import Field, several
from train.convert.rules import Permuted, Transposed, under
from train.convert.types import llama
from train.schema import natural, positive

PREFIX = llama.PREFIX
FIELDS = llama.FIELDS | dict(
  vocab_size=50_304,
  hidden_size=768,
  intermediate_size=8192,
  num_hidden_layers=several(12),
  num_attention_heads=6,
  hidden_act=Field("relu2"),
  final_logit_softcapping=Field(15.0, positive, None),
  bos_token_id=Field(0, natural, None),
)
ignored = llama.ignored


def model(hf):
  H, G, K = llama.heads(hf)
  return dict(
    dim=hf["hidden_size"],
    depth=hf["num_hidden_layers"],
    length=hf["max_position_embeddings"],
    pattern=("attention",),
    channel="relu2",
    mixers=dict(
      attention=dict(
        head=K,
        heads=H,
        kv_heads=G,
        base=hf["rope_theta"],
        norm="rms_plain",
        eps=hf["rms_norm_eps"],
        bias=hf["attention_bias"],
      )
    ),
    channels=dict(relu2=dict(width=hf["intermediate_size"])),
    norm="rms_plain",
    norm_eps=hf["rms_norm_eps"],
    embed_norm=True,
    vocab=dict(
      name="full",
      size=hf["vocab_size"],
      tied=hf["tie_word_embeddings"],
      softcap=hf["final_logit_softcapping"] or 0.0,
    ),
  )


def top(hf):
  found = llama.top(hf)
  del found["norm", "weight"]
  return found


def swapped(hf):
  """The order of q, k and v whose queries and keys have swapped halves."""
  H, G, K = llama.heads(hf)
  order = np.arange((H + 2 * G) * K).reshape(-1, K)
  turned = np.roll(order[: H + G], K // 2, -1)
  return np.concatenate([turned, order[H + G :]]).ravel()


def block(hf, i):
  own, order = f"model.layers.{i}", swapped(hf)
  attention = {
    path: Permuted(rule, order) if path[0] == "qkv" else rule
    for path, rule in llama.attention(hf, f"{own}.self_attn").items()
  }
  return under("attention", attention) | {
    ("channel", "up", "weight"): Transposed(f"{own}.mlp.fc1.weight"),
    ("channel", "down", "weight"): Transposed(f"{own}.mlp.fc2.weight"),
  }
