"""The kind of machine that a program is traced for.

It decides the length of chunks, how products are arranged, how experts run and
whether stacks are unrolled: never what is computed.
"""

import contextlib
import contextvars

import jax

_given = contextvars.ContextVar("target", default=None)


def name() -> str:
  """cpu, gpu or tpu: JAX's default backend, but inside `using`."""
  return _given.get() or jax.default_backend()


@contextlib.contextmanager
def using(name: str):
  """Traces for that kind of machine, whatever this one is."""
  token = _given.set(name)
  try:
    yield
  finally:
    _given.reset(token)
