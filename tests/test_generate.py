"""Draws are those of the formula, at every temperature, share and seed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train import generate

LOGITS = {
  "spread": np.random.default_rng(0).normal(size=50) * 5,
  "close": np.random.default_rng(1).normal(size=50) * 1e-6,
  "far": np.random.default_rng(2).normal(size=50) * 1e4,
  "equal": [0, 1, 1, 1] + 46 * [0],
  "blank": [-np.inf, 2, 1, 2] + 46 * [-np.inf],
}
TEMPERATURES = [5e-324, 1e-45, 1e-38, 1e-3, 0.8, 1, 30, 1e38, 1e39, 1.7e308]


def nucleus(logits, temperature, top_p):
  """In float64: as few of the likeliest as hold top_p, by logit and place."""
  gap = logits - logits.max()
  scaled = np.divide(gap, temperature, out=gap.copy(), where=gap < 0)
  share = np.exp(scaled) / np.exp(scaled).sum()
  order = np.argsort(-gap, kind="stable")
  before = np.cumsum(share[order]) - share[order]
  kept = order[(before < top_p) | (np.arange(len(order)) == 0)]
  found = np.zeros_like(share)
  found[kept] = share[kept]
  return found / found.sum()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", LOGITS)
def test_shares_are_those_of_float64(kind, dtype, monkeypatch):
  """Also where a temperature is no number of float32, or its inverse none."""
  logits = jnp.asarray(LOGITS[kind], dtype)
  exact = np.asarray(logits, np.float64)
  seen = []
  monkeypatch.setattr(
    jax.random, "categorical", lambda key, logits: seen.append(logits) or 0
  )
  for temperature in TEMPERATURES:
    for top_p in (0, 1e-12, 0.31, 0.71, 0.951, 1):
      generate.sample(logits[None], None, temperature, top_p)
      found = jax.nn.softmax(seen.pop()[0])
      with np.errstate(over="ignore"):
        expected = nucleus(exact, temperature, top_p)
      said = f"{temperature=} {top_p=}"
      np.testing.assert_allclose(found, expected, atol=2e-5, err_msg=said)


@pytest.mark.parametrize("temperature", [0, 0.8])
@pytest.mark.parametrize("worst", [np.nan, np.inf])
def test_a_model_that_diverged_has_no_symbol(temperature, worst):
  logits = jnp.asarray([[0.0, worst, 1.0], [0.0, -np.inf, 9e9]])
  found = generate.sample(logits, jax.random.key(0), temperature, 0.9)
  assert found.tolist() == [-1, 2]


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63, 2**64])
def test_seeds_that_would_be_others_are_refused(tmp_path, seed):
  with pytest.raises(ValueError, match=f"--seed={seed} must be from 0 to 2"):
    next(generate.stream(tmp_path, b"", seed=seed))


def test_every_other_seed_is_its_own():
  keys = [jax.random.key(s) for s in (0, 1, 2**31 - 1, 2**31, 2**32 - 1)]
  assert len({jax.random.key_data(key).tobytes() for key in keys}) == 5
