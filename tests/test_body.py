"""Bodies: which tokens open a chunk, and how these and the rest are joined.

That they are causal, split anywhere and forget is in test_properties, of their
configs."""

import functools
import math
from fractions import Fraction
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import build, close, config, held, noisy, with_body

import arch
from arch import body, registry
from arch.body import hnet, spaces

T = 40
BODIES = sorted({*registry.names("body")} - {"flat"})


def paid(want, reset, rate, burst):
  """A loop over the tokens of one document after another."""
  credit, owed, found = Fraction(0), True, []
  for w, r in zip(want, reset, strict=True):
    credit, owed = (Fraction(0), True) if r else (credit, owed)
    credit = min(credit + rate, burst)
    open_ = (w or owed) and credit >= 1
    found.append((open_, owed and open_, w and not open_))
    if open_:
      credit, owed = credit - 1, False
  return map(np.array, zip(*found, strict=True))


@pytest.mark.parametrize(
  ("rate", "burst"), [(0.25, 1), (0.25, 4), (0.3, 2), (1 / 3, 2), (1.0, 1)]
)
def test_credit_is_that_of_a_loop_however_it_is_cut(rate, burst):
  cfg = hnet.Config(dim=2, rate=rate, burst=burst)
  rng = np.random.default_rng(0)
  want, reset = rng.random((5, T)) < 0.4, rng.random((5, T)) < 0.08
  least = Fraction(math.ceil(rate * 2**16), 2**16)
  exact = [
    [*paid(w, r, least, burst)] for w, r in zip(want, reset, strict=True)
  ]
  exact = [np.stack(rows) for rows in zip(*exact, strict=True)]
  if rate < 1:
    assert exact[2].any()  # some are refused
  else:
    assert np.array_equal(exact[0], want | exact[1])
  found = body.chunks(cfg, want, reset, None)
  assert found.at.shape[1] == int(least * T)
  assert found.alive.sum() == exact[0].sum()
  for ours, theirs in zip((found.open, found.refused), exact[::2], strict=True):
    assert np.array_equal(ours, theirs)
  for row, at, alive, first in zip(
    range(5), found.at, found.alive, found.first, strict=True
  ):
    assert np.array_equal(at[alive], np.flatnonzero(exact[0][row]))
    assert np.array_equal(first[alive], exact[1][row][exact[0][row]])
  state, pieces = body.fresh(5), []
  for start, end in ((0, 1), (1, 8), (8, 9), (9, T)):
    now = slice(start, end)
    part = body.chunks(cfg, want[:, now], reset[:, now], state)
    assert np.all(part.count[:, -1] <= part.at.shape[1])
    state = part.state
    pieces.append((part.open, part.known))
  open_, known = (jnp.concatenate(p, 1) for p in zip(*pieces, strict=True))
  assert np.array_equal(open_, exact[0]) and np.array_equal(known, found.known)
  close(state, found.state)


def test_words_end_where_spacebyte_says():
  """Of a text with symbols of two and three bytes."""
  text = "It's 3.5: déjà—vu,  ok\n\nIt"
  data = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
  data = np.concatenate([[256], data])[None]
  cfg = spaces.Config(dim=2)
  found = spaces.Body.want(
    SimpleNamespace(cfg=cfg),
    None,
    jnp.asarray(data),
    None,
    {"between": jnp.zeros(1, bool)},
  )[0][0]

  def word(b):  # Slagle 2024, sec. 3
    return b < 256 and (chr(b).isalnum() if b < 128 else b < 0xC0)

  exact = [
    b == 256 or (not word(b) and (i == 0 or word(data[0][i - 1])))
    for i, b in enumerate(data[0])
  ]
  assert np.array_equal(found, exact)
  at = bytes(data[0][1:][np.asarray(found[1:])].astype(np.uint8))
  assert at == b"' .:\xc3\xc3\xe2,\n"


def made(name, **fields):
  """A tiny model with a body of that file."""
  c = with_body(name)
  c.model.bodies[name].update(fields)
  return noisy(build(c)).trunk


def given(D=24, B=2):
  keys = jax.random.split(jax.random.key(7), 2)
  reset = jnp.zeros((B, T), bool).at[1, 17].set(True)
  return jax.random.normal(keys[0], (B, T, D)), reset


def plain_hnet(query, key, skip, x, y_of, reset):
  """Hwang et al., a token at a time: out B T D, and p."""
  B, T, D = x.shape
  out, ps = [], []
  for b in range(B):
    z = jnp.zeros(D)
    for t in range(T):
      if t == 0 or reset[b, t]:
        p, first = jnp.float32(1), True
      else:
        q, k = x[b, t - 1] @ query, x[b, t] @ key
        cos = q @ k / jnp.sqrt((q @ q) * (k @ k))
        p, first = (1 - cos) / 2, False
      if p > 0.5:
        P = jnp.clip(p, 1e-4, 1 - 1e-4)
        z = P * y_of[b, t] + (1 - P) * (0 if first else z)
      c = p if p > 0.5 else 1 - p
      c = 1 + c - jax.lax.stop_gradient(c)
      out.append(c * z + x[b, t] @ skip)
      ps.append(p)
  return jnp.stack(out).reshape(x.shape), jnp.stack(ps).reshape(B, T)


def test_hnet_is_its_formula(record_property):
  """Of given answers y of the chunks, with room for every one."""
  trunk = made("hnet", rate=1.0)
  x, reset = given()
  y_of = jax.random.normal(jax.random.key(8), x.shape)
  g = jax.random.normal(jax.random.key(9), x.shape)
  names = ("query", "key", "skip")
  maps = [getattr(trunk, name)[...] for name in names]

  def ours(maps, x, y_of):
    own = SimpleNamespace(**dict(zip(names, maps, strict=True)), cfg=trunk.cfg)
    own.asked = functools.partial(hnet.Body.asked, own)
    state = trunk.init_own(len(x))
    want, p, state = hnet.Body.want(own, x, None, reset, state)
    found = body.chunks(trunk.cfg, want, reset, None)
    y = body.pick(y_of, found.at)
    out, _, aux = hnet.Body.read(own, x, y, found, p, state)
    return jnp.sum(g * out) + aux.loss, (out, p)

  def theirs(maps, x, y_of):
    out, p = plain_hnet(*maps, x, y_of, reset)
    N, G, F = trunk.cfg.every, jnp.mean(p), jnp.mean(p > 0.5)
    ratio = (1 - F) * (1 - G) + F * G * (N - 1)
    loss = trunk.cfg.weight * ratio * N / (N - 1)
    return jnp.sum(g * out) + loss, (out, p)

  graded = [
    jax.grad(f, (0, 1, 2), has_aux=True)(maps, x, y_of) for f in (ours, theirs)
  ]
  assert 0.2 < np.mean(graded[1][1][1] > 0.5) < 0.8
  source = "H-Net (2507.07955), eq. 4 to 10, in jax"
  held(record_property, "body", "hnet", source, *graded)


def test_spaces_adds_where_it_reads(record_property):
  """The same blocks by hand: all of the text, its chunks alone, all of it."""
  trunk = made("spaces", rate=1.0)
  x, reset = given(B=1)
  text = jax.random.randint(jax.random.key(3), (1, T), 0, 257)
  ours, _, aux = trunk(x, None, None, tokens=text)
  first, _, _ = trunk.encoder(x)
  mark = spaces.between(text[0])
  mark = (mark & ~jnp.concatenate([jnp.zeros(1, bool), mark[:-1]])) | (
    text[0] == 256
  )
  at = np.flatnonzero(mark.at[0].set(True))
  pad = jnp.broadcast_to(trunk.pad[...], (1, len(at), 12))
  y, _, _ = trunk.inner(jnp.concatenate([first[:, at], pad], -1))
  exact, _, _ = trunk.decoder(first.at[:, at].add(y[..., :24]))
  assert (
    5 < len(at) < T
    and abs(aux.statistics["tokens_a_chunk"] - T / len(at)) < 1e-4
  )
  source = "SpaceByte (2404.14408), sec. 3, in jax"
  held(record_property, "body", "spaces", source, ours, exact)


@pytest.mark.parametrize("name", BODIES)
def test_chunks_cost_their_share(name):
  """FLOPs of the trunk over chunks go with the rate."""
  c = with_body(name)

  def cost(**fields):
    c.model.bodies[name].update(burst=1, **fields)
    return arch.count(arch.abstract(c.model), 64).forward.groups

  half, quarter = cost(rate=0.5), cost(rate=0.25)
  inner = {k: half[k] - quarter[k] for k in half}
  c.model.depth = 2 * c.model.depth
  deeper = cost(rate=0.25)
  # as much as a second trunk over a quarter of the tokens, attention over fewer
  more = deeper["channel"] - quarter["channel"]
  assert abs(inner["channel"] / more - 1) < 0.05


@pytest.mark.parametrize(
  ("name", "fields", "message"),
  [
    ("hnet", {"rate": 0.0}, r"body hnet: rate=0.0 must be in \(0, 1\]"),
    ("hnet", {"rate": 1.5}, r"body hnet: rate=1.5 must be in \(0, 1\]"),
    ("hnet", {"wider": 1.3}, "wider=1.3 makes no whole number of dim=24"),
    ("hnet", {"wider": 0.5}, "wider=0.5 must be at least 1"),
    ("hnet", {"encoder": 0}, "encoder=0 must be at least 1"),
    ("hnet", {"every": 1.0}, "every=1.0 must be above 1"),
    ("hnet", {"evry": 2.0}, "body hnet has no field 'evry'.*every"),
    ("spaces", {"burst": 0}, "body spaces: burst=0 must be at least 1"),
  ],
)
def test_what_does_not_fit_is_refused(name, fields, message):
  with pytest.raises(ValueError, match=message):
    made(name, **fields)


def test_spaces_reads_bytes():
  c = config("spacebyte")
  c.model.vocab.size = 300
  with pytest.raises(ValueError, match="300 symbols: use data.tokenizer=bytes"):
    arch.abstract(c.model)
  c = config("spacebyte")
  model = build(c)
  with pytest.raises(ValueError, match="body spaces: needs the tokens"):
    model.mix(jnp.zeros((1, 3, 24)))
  c.model.body = "space"
  with pytest.raises(ValueError, match="unknown body 'space'.*spaces"):
    arch.abstract(c.model)


def test_flat_is_block_after_block(record_property):
  trunk = noisy(build(config("mingru"))).trunk
  x, _ = given()
  exact = x
  for i in range(3):
    block = jax.tree.map(lambda a, i=i: a[i], trunk.stack_0).block_0
    exact += block.mingru(block.norm(exact), None, None)[0]
    exact += block.channel(block.channel_norm(exact), None, None)[0]
  source = "x + f(norm(x)), layer by layer"
  held(record_property, "body", "flat", source, trunk(x)[0], exact)
