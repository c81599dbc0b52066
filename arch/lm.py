"""The shell: vocabulary + blocks + readout, the same for every architecture.

  x = embed(tokens) (+ position), normalised if asked
  x = x + mixer(norm(x));  x = x + channel(norm(x))      in every block, of the
  body's: over every token, or over chunks of them
  logits = readout(norm(x))

B batch  T time  D width  V symbols
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
from flax import nnx

from arch import arrays, pattern
from arch.config import closest, configure
from arch.law import Aux
from arch.layers import NORMS
from arch.product import mixed
from arch.registry import find
from arch.remat import REMAT
from arch.vocabulary import Vocab

DTYPES = ("float32", "bfloat16", "mixed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """The shell's own fields; every one can be set in a config's `model`.

  Attributes:
    dim: width of the residual stream.
    depth: number of blocks, of which those of a loop count once.
    length: how far back attention looks from a carried state.
    pattern: blocks, repeated and cut at depth; see arch/pattern.py.
    channel: channel mixer of the entries that name none; "none" for none.
    wiring: how blocks of entries that name none join the stream, a file in
      arch/wiring.
    loop: fields of a pattern.Loop of all blocks but its first and last ones.
    body: what stands between tokens and readout, a file in arch/body.
    bodies: fields of each body's Config, by its name.
    mixers: fields of each mixer's Config, by its name.
    channels: fields of each channel mixer's Config, by its name.
    linear: how maps store their weights, a file in arch/weights.
    weights: fields of each of those, by its name.
    vocab: `name` of a file in arch/vocab, or `input` and `output`, `size`, and
      fields of their Configs.
    norm: of the residual stream: "rms", "rms_plus" (its parameter is w - 1),
      "rms_plain" (it has none) or "layer" (with biases).
    norm_eps: what a norm adds to the mean square.
    embed_norm: whether the embedded tokens are normalised, as RWKV's are.
    positions: how many learned positions a document has, added to the embedded
      tokens as in GPT-2; 0 for none.
    dtype: compute dtype, float32 or bfloat16; "mixed" is float32 with operands
      of products rounded to bfloat16: see arch/product.py.
    remat: what the backward pass computes again: "none"; "auto", of each block
      all but products; "block", all of it. See arch/remat.py.
    dropout: share of each block's output that training sets to zero.
  """

  dim: int
  depth: int
  length: int
  pattern: tuple
  vocab: Mapping
  channel: str = "swiglu"
  wiring: str = "residual"
  loop: Mapping = dataclasses.field(default_factory=dict)
  body: str = "flat"
  bodies: Mapping = dataclasses.field(default_factory=dict)
  mixers: Mapping = dataclasses.field(default_factory=dict)
  channels: Mapping = dataclasses.field(default_factory=dict)
  linear: str = "dense"
  weights: Mapping = dataclasses.field(default_factory=dict)
  norm: str = "rms"
  norm_eps: float = 1e-6
  embed_norm: bool = False
  positions: int = 0
  dtype: str = "float32"
  remat: str = "none"
  dropout: float = 0.0

  def __post_init__(self):
    for name in ("dim", "depth", "length"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)} must be positive")
    if self.norm not in NORMS:
      raise ValueError(
        f"unknown norm={self.norm!r}: {closest(self.norm, NORMS)}"
      )
    if self.norm_eps <= 0 or self.positions < 0:
      raise ValueError(
        f"norm_eps={self.norm_eps} must be positive and "
        f"positions={self.positions} not negative"
      )
    if self.dtype not in DTYPES:
      raise ValueError(f"dtype={self.dtype!r}: one of {', '.join(DTYPES)}")
    if self.remat not in REMAT:
      raise ValueError(f"remat={self.remat!r}: one of {', '.join(REMAT)}")
    if not 0 <= self.dropout < 1:
      raise ValueError(f"dropout={self.dropout} must be in [0, 1)")
    find("wiring", self.wiring)
    find("body", self.body)
    named = {"mixers": self.mixers, "channels": self.channels}
    named |= {"weights": self.weights, "body": self.bodies}
    for axis, names in named.items():
      for name in names:
        find(axis, name)

  def normaliser(self, width=None):
    """A norm of the residual stream, or of so many numbers."""
    return NORMS[self.norm](width or self.dim, eps=self.norm_eps)

  @property
  def compute(self) -> str:
    """The dtype of what is between products."""
    return "float32" if self.dtype == "mixed" else self.dtype

  @functools.cached_property
  def loops(self) -> pattern.Loop:
    return configure(pattern.Loop, "loop", **self.loop)

  @functools.cached_property
  def layers(self) -> int:
    """How many blocks a token goes through."""
    layout = (getattr(self, name) for name in pattern.LAYOUT)
    return len(pattern.places(*layout))

  @property
  def weight(self):
    """How maps store their weights."""
    kind = find("weights", self.linear).Weight
    fields = dict(self.weights.get(self.linear, {}))
    return configure(kind, f"weight {self.linear}", **fields)

  @property
  def inside(self):
    """The Config of its body."""
    kind, fields = find("body", self.body).Config, self.bodies.get(self.body)
    told = {"dim": self.dim, "size": self.vocab.get("size")}
    known = kind.__dataclass_fields__
    told = {name: told[name] for name in told if name in known}
    return configure(kind, f"body {self.body}", **dict(fields or {}), **told)

  @property
  def common(self):
    """What every mixer and channel mixer is told."""
    told = {name: getattr(self, name) for name in ("dim", "length", "weight")}
    return told | {"depth": self.layers, "dtype": self.compute}


def build(cfg: Mapping, *, rngs: nnx.Rngs) -> "LM":
  """The model that a config's `model` describes."""
  return LM(configure(Config, "model", **dict(cfg)), rngs=rngs)


def computed(method):
  """A method of LM whose products are those of its config's dtype."""

  @functools.wraps(method)
  def call(self, *args, **given):
    with mixed(self.mixed):
      return method(self, *args, **given)

  return call


class LM(nnx.Module):
  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    self.length, self.mixed = cfg.length, cfg.dtype == "mixed"
    self.vocab = Vocab(cfg, rngs=rngs)
    self.trunk = find("body", cfg.body).Body(cfg.inside, cfg, rngs=rngs)
    self.norm = cfg.normaliser()
    self.embed_norm = cfg.normaliser() if cfg.embed_norm else None
    arrays.mark(self.vocab, group="vocab")
    arrays.mark((self.norm, self.embed_norm), group="norm")

  @property
  def limit(self) -> int | None:
    """The longest document that it can read, in tokens; None for any."""
    return self.vocab.limit

  def init_state(self, batch: int, length: int | None = None):
    """A fresh state; a ring of `length` keys where memory is not fixed."""
    return {
      "vocab": self.vocab.init_state(batch),
      "trunk": self.trunk.init_state(batch, length),
    }

  @computed
  def features(self, tokens, reset=None, state=None, *, key=None):
    """What the readout sees.

    Args:
      tokens: B T int32.
      reset: B T bool, True at a document's first token, or None.
      state: what an earlier call returned, or None for a fresh start.
      key: for dropout; None for none.

    Returns:
      x B T D; the state after the last token; an Aux, whose statistics are
      means over the layers and whose `next` is nested as the model is.
    """
    with jax.named_scope("vocab"):
      own = None if state is None else state["vocab"]
      x, own = self.vocab.embed(tokens, reset, own)
    if self.embed_norm is not None:
      x = self.embed_norm(x)
    x, new, aux = self.mix(x, reset, state, key=key, tokens=tokens)
    return x, new | {"vocab": own}, aux

  @computed
  def mix(self, x, reset=None, state=None, *, key=None, tokens=None):
    """As `features`, from the embedded tokens x, B T D."""
    state = None if state is None else state["trunk"]
    x, new, aux = self.trunk(x, reset, state, key=key, tokens=tokens)
    return self.norm(x), {"trunk": new}, Aux().join("trunk", aux)

  @computed
  def __call__(self, tokens, reset=None, state=None):
    """Logits B T V in float32, and the carried state."""
    x, state, _ = self.features(tokens, reset, state)
    with jax.named_scope("vocab"):
      return self.vocab.logits(x), state

  @computed
  def loss(
    self, tokens, targets, weights, reset=None, *, key=None, teacher=None
  ):
    """Mean nats a weighted position, and Aux; B T V is never built.

    Args:
      teacher: a Teacher, which makes what is learnt, nats + aux.loss,
        (1 - weight) nats + weight temperature^2 KL.
    """
    x, _, aux = self.features(tokens, reset, key=key)
    with jax.named_scope("vocab"):
      nats = self.vocab.loss(x, targets, weights)
      later = self.vocab.later(x, targets, weights, reset)
    aux = aux._replace(loss=aux.loss + later)
    if teacher is not None:
      other, weight, T = teacher
      theirs, _, _ = other.features(tokens, reset)
      with jax.named_scope("vocab"):
        kl = self.vocab.apart(x, other.vocab, theirs, weights, T)
      aux = aux._replace(
        loss=aux.loss + weight * (T**2 * kl - nats),
        statistics=aux.statistics | {"teacher_kl": kl},
      )
    return nats, aux

  @computed
  def score(self, tokens, targets, reset=None, state=None):
    """nats B T in float32, whether the likeliest symbol was right, B T, and the
    carried state; B T V is never built."""
    x, state, _ = self.features(tokens, reset, state)
    with jax.named_scope("vocab"):
      return *self.vocab.score(x, targets), state


class Teacher(NamedTuple):
  """Whose answers a model learns from, beside the text; see LM.loss.

  Attributes:
    model: an LM of the same symbols.
    weight: of its answers; 0 for the text alone.
    temperature: by which both logits are divided.
  """

  model: LM
  weight: float
  temperature: float


def abstract(cfg: Mapping) -> LM:
  """The model with shapes in place of arrays."""
  return nnx.eval_shape(lambda: build(cfg, rngs=nnx.Rngs(0)))
