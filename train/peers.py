"""PyTorch's own implementations, trained a step at a time on the same sizes.

They are Hugging Face's of the same architecture, of the widths, heads and
symbols that a config has here, in every setting of SETTINGS: what is compared
with is the best of them. The step is as here: loss, gradient, clipping to a
norm of 1, AdamW. Kernels for GPUs they take from fla-core, causal-conv1d and
mamba-ssm, where those are installed.
"""

import functools
import importlib.util
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from arch import lm, pattern
from arch.config import configure

SETTINGS = tuple(
  itertools.product(("float32", "bfloat16"), ("eager", "compiled"))
)


class Peer(NamedTuple):
  """
  Attributes:
    name: of its class in transformers, less Config and ForCausalLM.
    fields: (dim, a block's first mixer Config, a channel's width) -> those of
      its config that are neither width, depth nor symbols.
  """

  name: str
  fields: Callable[[int, Any, int], dict]


def llama(dim, mixer, width):
  return {
    "intermediate_size": width,
    "num_attention_heads": mixer.H,
    "num_key_value_heads": mixer.G,
    "head_dim": mixer.head,
  }


def mamba2(dim, mixer, width):
  return {
    "num_heads": mixer.H,
    "head_dim": mixer.head,
    "n_groups": mixer.groups,
    "state_size": mixer.state,
    "expand": mixer.expand,
    "conv_kernel": mixer.conv,
    "chunk_size": 64,
    "bos_token_id": 0,
  }


def recurrent_gemma(dim, mixer, width):
  return {
    "intermediate_size": 2 * width,  # theirs counts gate and value
    "num_attention_heads": mixer.blocks,
    "num_key_value_heads": 1,
    "lru_width": mixer.E,
    "attention_window_size": 64,
    "conv1d_width": mixer.conv,
  }


def qwen3_next(dim, mixer, width):
  return {
    "intermediate_size": width,
    "num_experts": 1,
    "num_experts_per_tok": 1,
    "decoder_sparse_step": 1 << 20,  # every channel mixer is dense
    "full_attention_interval": 1 << 20,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": dim // 4,
    "linear_num_key_heads": mixer.G,
    "linear_num_value_heads": mixer.H,
    "linear_key_head_dim": mixer.head,
    "linear_value_head_dim": mixer.expand * mixer.head,
    "linear_conv_kernel_dim": mixer.conv,
  }


PEERS = {
  "attention": Peer("Llama", llama),
  "mamba2": Peer("Mamba2", mamba2),
  "griffin": Peer("RecurrentGemma", recurrent_gemma),
  "gated_deltanet": Peer("Qwen3Next", qwen3_next),
}


def model(name: str, cfg):
  """The peer of a config here, of the same sizes, on PyTorch's CPU."""
  import transformers

  own, peer = cfg.model, PEERS[name]
  told = configure(lm.Config, "model", **own.to_dict())
  mixer = pattern.expand(told)[0].parts[0].cfg
  width = own.channels.get(own.channel, {}).get("width")
  fields = peer.fields(own.dim, mixer, width)
  kind = getattr(transformers, f"{peer.name}Config")
  if peer.name == "Qwen3Next":
    fields["layer_types"] = ["linear_attention"] * own.depth
  made = kind(
    hidden_size=own.dim,
    num_hidden_layers=own.depth,
    vocab_size=own.vocab.size,
    tie_word_embeddings=bool(own.vocab.get("tied", False)),
    **fields,
  )
  return getattr(transformers, f"{peer.name}ForCausalLM")(made)


def check():
  """ValueError where PyTorch or transformers is missing."""
  for name in ("torch", "transformers"):
    if not importlib.util.find_spec(name):
      raise ValueError(f"--peers wants {name}: pip install -e '.[parity]'")


def steps(name: str, cfg) -> Iterator[tuple[dict, Callable | None]]:
  """A setting's row and its step, which was called once; or a row that says why
  PyTorch refused it, and None."""
  import torch
  import transformers

  transformers.logging.set_verbosity_error()
  device = "cuda" if torch.cuda.is_available() else "cpu"
  shape = cfg.train.batch, cfg.train.length
  text = np.random.default_rng(0).integers(0, cfg.model.vocab.size, shape)
  text = torch.as_tensor(text, device=device)
  for dtype, way in SETTINGS:
    torch.manual_seed(0)
    peer = model(name, cfg).to(device)
    params = sum(p.numel() for p in peer.parameters())
    adam = torch.optim.AdamW(peer.parameters(), lr=cfg.train.lr)

    def step(call, peer=peer, adam=adam, low=dtype == "bfloat16"):
      adam.zero_grad(set_to_none=True)
      with torch.autocast(device, torch.bfloat16, enabled=low):
        loss = call(input_ids=text, labels=text, use_cache=False).loss
      loss.backward()
      torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
      adam.step()
      return loss.item()  # waits for the device

    row = {"peer": PEERS[name].name, "dtype": dtype, "way": way}
    row |= {"params": params, "torch": torch.__version__, "device": device}
    row |= {"transformers": transformers.__version__}
    start = time.perf_counter()
    try:
      call = torch.compile(peer) if way == "compiled" else peer
      step(call)
    except Exception as error:  # what a compiler raises is of any kind
      why = f"{type(error).__name__}: {error}".split("\n")[0]
      yield row | {"refused": why}, None
      continue
    row["compile_seconds"] = time.perf_counter() - start
    yield row, functools.partial(step, call)
