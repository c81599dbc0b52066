"""Products with operands of few bits: what they answer, and who makes them."""

import jax
import jax.numpy as jnp
import numpy as np
import programs
import pytest
from models import batch, close, config

import arch
from arch import product
from arch.product import mixed
from train.sharding import Sharding
from train.step import Step

FORMULAS = {
  "ck,kn->cn": ((7, 5), (5, 3)),
  "ck,nk->cn": ((7, 5), (3, 5)),
  "kc,kn->cn": ((5, 7), (5, 3)),
  "ck,kn->nc": ((7, 5), (5, 3)),
  "btk,kn->btn": ((2, 7, 5), (5, 3)),
  "bthk,hkj->bthj": ((2, 5, 3, 4), (3, 4, 6)),
  "bgij,bgjk->bgik": ((2, 3, 4, 5), (2, 3, 5, 6)),
  "bji,bjk->bik": ((2, 4, 3), (2, 4, 5)),
  "nd,nkd->nk": ((4, 5), (4, 3, 5)),
  "ab,ab->a": ((4, 5), (4, 5)),
  "bthc,chv->bthv": ((1, 2, 3, 4), (4, 3, 5)),
}
SHAPES = [(f, *shapes) for f, shapes in FORMULAS.items()]
SHAPES += [
  ("ck,kn->cn", (1, 1), (1, 1)),
  ("bck,bkn->bcn", (3, 1, 1), (3, 1, 1)),
]
SHAPES += [("ck,kn->cn", (1, 64), (64, 65)), ("kc,kn->nc", (1, 3), (1, 2))]


def few(x):
  """In float32, of as few digits as bfloat16 has."""
  return x.astype(jnp.bfloat16).astype(jnp.float32)


@pytest.mark.parametrize("arranged", [True, False])
@pytest.mark.parametrize(("formula", "one", "two"), SHAPES)
def test_it_is_the_einsum_of_rounded_operands(formula, one, two, arranged):
  """Value and gradients, alone and under vmap."""
  x, y = (
    jax.random.normal(jax.random.key(i), (2, *shape))
    for i, shape in enumerate((one, two))
  )

  def made(x, y):
    return product.rounded(formula, arranged, x, y)

  def exact(x, y):
    return jnp.einsum(formula, few(x), few(y), precision="highest")

  def both(call, x, y):
    d = jax.random.normal(jax.random.key(3), jax.eval_shape(call, x, y).shape)
    found, pullback = jax.vjp(call, x, y)
    return found, d, pullback(d)

  left, right, out = formula.replace("->", ",").split(",")
  for i in range(2):
    found, d, (dx, dy) = jax.jit(lambda *a: both(made, *a))(x[i], y[i])
    close(found, exact(x[i], y[i]), 1e-5)
    d = few(d)
    back = (
      (f"{out},{right}->{left}", d, y[i]),
      (f"{left},{out}->{right}", x[i], d),
    )
    for own, (f, a, b) in zip((dx, dy), back, strict=True):
      close(own, jnp.einsum(f, few(a), few(b), precision="highest"), 1e-5)
  close(jax.jit(jax.vmap(made))(x, y), jax.vmap(exact)(x, y), 1e-5)


def test_a_formula_reaches_it_where_that_is_worth_it(monkeypatch):
  x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
  y = jax.random.normal(jax.random.key(1), (2, 3, 5, 6))
  call = "...ij,...jk->...ik"
  exact, whole = x @ y, few(x) @ few(y)
  close(product.product(call, x, y), exact, 1e-6)
  with mixed(True):
    close(product.product(call, x, y), exact, 1e-6)  # a batch of small ones
    monkeypatch.setattr(product, "WORTH", 4 * 5 * 6)
    close(product.product(call, x, y), whole, 1e-6)
    close(product.product(call, x, y, "highest"), exact, 1e-6)
    close(product.matmul(x[0, 0], y[0, 0]), whole[0, 0], 1e-6)
    assert (
      product.matmul(*(a[0, 0].astype(jnp.bfloat16) for a in (x, y))).dtype
      == jnp.bfloat16
    )
  assert np.abs(exact - whole).max() > 1e-4
  close(product.matmul(x[0, 0], y[0, 0]), exact[0, 0], 1e-6)


def dots(jaxpr):
  """Numbers of an answer, terms of each, and dtypes in, of every product."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "dot_general":
      (axes, _), _ = eqn.params["dimension_numbers"]
      x, y = (v.aval for v in eqn.invars)
      terms = int(np.prod([x.shape[a] for a in axes]))
      yield eqn.outvars[0].aval.size * terms, {x.dtype.name, y.dtype.name}
    for part in jax.tree.leaves(
      list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
    ):
      part = getattr(part, "jaxpr", part)
      if hasattr(part, "eqns"):
        yield from dots(part)


@pytest.mark.parametrize("remat", ["none", "block"])
@pytest.mark.parametrize("name", ["attention", "experts", "mamba2"])
def test_a_steps_products_round_their_operands(name, remat):
  """Forward and backward, in loops, under remat, of maps and of the readout."""
  shares = {}
  for dtype in ("float32", "mixed"):
    c = config(name)
    c.model.update(dtype=dtype, remat=remat)
    c.train.update(batch=4, accumulate=2)
    step = Step(c)
    state = jax.eval_shape(lambda step=step: step.init(0, 1e-3))
    data = jax.eval_shape(lambda c=c: batch(c))
    found = list(dots(jax.make_jaxpr(step._train)(state, data).jaxpr))
    few = sum(n for n, kinds in found if kinds == {"bfloat16"})
    shares[dtype] = few / sum(n for n, _ in found)
  assert shares["float32"] == 0
  # recurrences and routers stay exact; tiles of attention are small here
  assert (
    shares["mixed"] > {"attention": 0.83, "experts": 0.77, "mamba2": 0.64}[name]
  )


def test_state_and_answers_stay_float32():
  c = config("griffin")
  c.model.dtype = "mixed"
  tokens = jax.ShapeDtypeStruct((2, 5), jnp.int32)
  found = jax.eval_shape(lambda m, t: m(t), arch.abstract(c.model), tokens)
  kinds = {a.dtype.name for a in jax.tree.leaves(found)}
  assert kinds <= {"float32", "int32", "bool"}


@pytest.mark.parametrize("model", [1, 2])
def test_devices_share_them(model):
  """A layout that is asked for leaves rows, and maps, where they are."""
  sharding, counts, found = Sharding.fitting(model, 8), {}, {}
  for dtype in ("float32", "mixed"):
    c = config("attention")
    c.model.dtype, c.train.batch = dtype, 8
    step, data = Step(c), batch(c)
    spread = sharding.state(step.init(0, 1e-3), step.layers)
    data = sharding.batch(data)
    text = step.train.lower(spread, data).compile().as_text()
    counts[dtype] = programs.products(text)
    found[dtype] = jax.device_get(step.train(spread, data)[1])
  assert counts["mixed"] == counts["float32"]
  alone = step.train(step.init(0, 1e-3), batch(c))[1]
  assert abs(found["mixed"]["loss"] - alone["loss"]) < 1e-5
  assert 0 < abs(found["mixed"]["loss"] - found["float32"]["loss"]) < 1e-2
