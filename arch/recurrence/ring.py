"""The last L tokens of a stream, whatever calls brought them: what attention
carries from one call to the next.

A ring is a dict. Its things, B G L W each, hold one row a token, the token of
stream position p at slot p mod L; `position` is the next token's, and `seen`
says how many slots hold the document of the latest. A thing named `level` holds
c_s - c_t, where t is the latest token: see attend.py. So counted, it needs no
more digits in a long stream than in a short one.

B batch  T time  S tokens of the ring and the call  L ring length  G groups
W width
"""

import jax
import jax.numpy as jnp

COUNTERS = ("position", "seen")


def fresh(batch, length, **about):
  """An empty ring of `length` slots; G, W and dtype of each of its things."""
  ring = {name: jnp.zeros(batch, jnp.int32) for name in COUNTERS}
  for name, (G, W, dtype) in about.items():
    ring[name] = jnp.zeros((batch, G, length, W), dtype)
  return ring


def things(ring):
  return {name: x for name, x in ring.items() if name not in COUNTERS}


def length(ring):
  return next(iter(things(ring).values())).shape[2]


def positions(ring, T):
  """Stream positions of the next T tokens, B T; of a fresh ring for None."""
  after = jnp.arange(T)[None]
  return after if ring is None else ring["position"][:, None] + after


def extend(ring, new, reset, *, alone):
  """T tokens after those of the ring.

  Args:
    ring: may be a fresh one.
    new: the tokens' things, B T G W; their level is counted from the ring's
      latest token.
    reset: B T bool, True at a document's first token, or None.
    alone: whether the tokens of the ring are left out of what is answered.

  Returns:
    The things of all tokens, in the stream's order, B S G W; which of them is
    the first of each new token's document, B T, or None where it is the first;
    the ring after them.
  """
  B, T = next(iter(new.values())).shape[:2]
  L = length(ring)
  whole, past = new, 0
  if not alone:
    past = L
    old = {  # B L G W, the oldest first
      name: roll(jnp.einsum("bglw->blgw", x), -ring["position"], 0)
      for name, x in things(ring).items()
    }
    whole = {name: jnp.concatenate([old[name], new[name]], 1) for name in new}

  # B T, where t's document starts; a token of this call is 0
  start = -ring["seen"][:, None]
  if reset is not None:
    start = jax.lax.cummax(jnp.where(reset, jnp.arange(T)[None], start), 1)
  first = None
  if not alone or reset is not None:
    first = jnp.broadcast_to(past + start, (B, T))

  position = ring["position"] + T
  short = max(0, L - past - T)

  def keep(x):
    """B S G W -> B G L W."""
    x = jnp.pad(x[:, -L:], ((0, 0), (short, 0), (0, 0), (0, 0)))
    return roll(jnp.einsum("blgw->bglw", x), position, 1)

  kept = {name: keep(x) for name, x in whole.items()}
  if "level" in new:
    kept["level"] -= new["level"][:, -1, :, None]
  seen = jnp.minimum(T - start[:, -1], L)
  return whole, first, kept | {"position": position, "seen": seen}


def roll(x, shift, axis):
  """Rolls each row of x by its own shift."""
  return jax.vmap(lambda x, shift: jnp.roll(x, shift, axis))(x, shift)


def push(ring, new, reset):
  """The ring after one token, whose things take a slot where they lie, and
  which of its tokens that one sees, B L."""
  L = length(ring)
  slot = ring["position"] % L

  def put(held, x):
    write = jax.lax.dynamic_update_slice_in_dim
    return jax.vmap(lambda *row: write(*row, 1))(held, x, slot)

  kept = {name: put(ring[name], x[:, 0, :, None]) for name, x in new.items()}
  if "level" in new:
    kept["level"] -= new["level"][:, 0, :, None]
  seen = ring["seen"]
  if reset is not None:
    seen = jnp.where(reset[:, 0], 0, seen)
  seen = jnp.minimum(seen + 1, L)
  age = (slot[:, None] - jnp.arange(L)[None]) % L
  after = {"position": ring["position"] + 1, "seen": seen}
  return kept | after, age < seen[:, None]
