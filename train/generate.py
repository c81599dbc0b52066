"""Text from a trained model, a symbol at a time from the carried state."""

import functools
import math
import os
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from arch import arrays
from train import checkpoint, models


def sample(logits, key, temperature: float, top_p: float):
  """A symbol a row of B V logits; -1 where the largest is no finite number.

  Of the likeliest symbols, as few are drawn from as hold `top_p` of the
  probability (nucleus sampling, https://arxiv.org/abs/1904.09751), equal ones
  from the first on; at a temperature of 0 the likeliest is taken.
  """
  likeliest = jnp.max(logits, -1, keepdims=True)
  known = jnp.isfinite(likeliest[..., 0])
  if temperature == 0:
    return jnp.where(known, jnp.argmax(logits, -1), -1)
  # below 0, so that no quotient overflows but to -inf; XLA multiplies by 1/t
  gap = logits.astype(jnp.float32) - likeliest.astype(jnp.float32)
  least = float(jnp.finfo(jnp.float32).tiny)
  logits = gap / min(max(temperature, least), 1 / least)
  if top_p < 1:
    order = jnp.argsort(-gap, -1)  # quotients may be equal
    share = jax.nn.softmax(jnp.take_along_axis(logits, order, -1), -1)
    before = jnp.cumsum(share, -1) - share
    # the likeliest is kept whatever top_p is
    inside = (before < top_p).at[..., 0].set(True)
    kept = jnp.take_along_axis(inside, jnp.argsort(order, -1), -1)
    logits = jnp.where(kept, logits, -jnp.inf)
  return jnp.where(known, jax.random.categorical(key, logits), -1)


def stream(
  workdir,
  prompt: bytes,
  *,
  temperature: float = 0.8,
  top_p: float = 0.95,
  seed: int = 0,
  size: int = 500,
  which: str = "best",
) -> Iterator[bytes]:
  """Yields what follows the prompt in a new document, piece by piece.

  It ends before `size` bytes where a model's learned positions do.

  Raises:
    ValueError: no such run, one that was trained on a task, one that diverged,
      or a prompt longer than the model's learned positions.
  """
  if not 0 <= temperature < math.inf:
    raise ValueError(f"--temperature={temperature} must be 0 or a number above")
  if not 0 <= top_p <= 1:
    raise ValueError(f"--top_p={top_p} must be from 0 to 1")
  if not 0 <= seed < 2**32:
    raise ValueError(f"--seed={seed} must be from 0 to 2**32 - 1")
  _, tokens, model = models.trained(workdir, which)
  graph, weights = arrays.split(model)
  blank = jnp.asarray(tokens.blank, jnp.int32)
  known = math.inf if model.limit is None else model.limit

  @functools.partial(jax.jit, donate_argnums=1)
  def run(weights, state, text, reset):
    logits, state = arrays.join(graph, weights)(text, reset, state)
    return logits[:, -1], state

  @jax.jit
  def draw(logits, step):
    key = jax.random.fold_in(jax.random.key(seed), step)
    logits = logits.at[..., blank].set(-jnp.inf)
    return sample(logits, key, temperature, top_p)

  start = tokens.vocab
  text = np.concatenate([[start], tokens.encode(prompt)]).astype(np.int32)
  reset = np.arange(len(text)) == 0
  state = arrays.init_state(graph, weights, 1)
  logits, state = run(weights, state, text[None], reset[None])
  written = step = 0
  later = jnp.zeros((1, 1), bool)
  while True:
    symbol = draw(logits, step)
    if symbol[0] < 0:
      raise ValueError(
        f"{os.fspath(workdir)}: the model's logits are no numbers"
      )
    piece = tokens.decode([int(symbol[0])])
    yield piece
    written += len(piece)
    step += 1
    if len(text) + step > known:
      checkpoint.say(f"the model's {known} learned positions are full")
      return
    if written >= size:
      return
    logits, state = run(
      weights, state, symbol[:, None].astype(jnp.int32), later
    )
