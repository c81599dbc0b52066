"""The kinds of machine that a program is traced for, and what each likes: never
what is computed."""

import contextlib
import contextvars
import os
from typing import NamedTuple

import jax


class Target(NamedTuple):
  """
  Attributes:
    name: cpu, gpu or tpu, as JAX has it.
    chunk: tokens of a recurrence's chunk, where nothing else is said. On a CPU
      the delta rule, whose matrices are C C, takes two thirds to nine tenths of
      the time with 32, and a gated one no longer.
    unroll: a stack of at most so many blocks is unrolled, which on a CPU saves
      the copies of its stacked activations.
    arranged: whether a batch of products is arranged; see product.py.
    one_by_one: whether blocks of experts run one by one, not all at once; see
      channels/experts.py.
    kernels: whether there are kernels, which run where it is known who holds
      which rows of a batch; see rows.py.
    whole: whether decays of each number are multiplied in whole chunks.
    halves: whether positions are turned half by half, not by a roll.
  """

  name: str
  chunk: int = 64
  unroll: int = 1
  arranged: bool = False
  one_by_one: bool = False
  kernels: bool = False
  whole: bool = False
  halves: bool = False


TARGETS = {
  "cpu": Target("cpu", chunk=32, unroll=16, arranged=True, one_by_one=True),
  "gpu": Target("gpu"),
  "tpu": Target("tpu", kernels=True, whole=True, halves=True),
}

KERNELS = "LAB_KERNELS"  # 0 in the environment leaves them out everywhere

_given = contextvars.ContextVar("target", default=None)


def now() -> Target:
  """That of JAX's default backend, but inside `using`; a kind of accelerator
  that is not known is taken for a GPU."""
  name = _given.get() or jax.default_backend()
  found = TARGETS.get(name, TARGETS["gpu"])
  return found._replace(
    kernels=found.kernels and os.environ.get(KERNELS) != "0"
  )


@contextlib.contextmanager
def using(name: str):
  """Traces for that kind of machine, whatever this one is."""
  if name not in TARGETS:
    raise ValueError(f"unknown target {name!r}: one of {', '.join(TARGETS)}")
  token = _given.set(name)
  try:
    yield
  finally:
    _given.reset(token)
