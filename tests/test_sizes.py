"""Sizes are solved to within 1 % of a budget, for every kind of config."""

import pytest
from models import DISTINCT, config

import arch
from train import sizes

# always: one second size that grows, and one that does not
ALWAYS = ("attention", "mamba2", "experts")


def marks(name):
  kept = pytest.mark.recorded("configs", name, "sizes")
  return [] if name in ALWAYS else [kept]


@pytest.mark.parametrize(
  "name", [pytest.param(n, marks=marks(n)) for n in DISTINCT]
)
def test_every_config_meets_a_budget(name):
  c = config(name, "small")
  c.model.vocab.size = 256
  own = {**c.model.mixers.to_dict()}
  solved = sizes.solve(c, 500_000)
  assert abs(sizes.parameters(solved) / 500_000 - 1) < 0.01
  assert solved.model.dim % 8 == 0 and solved.model.depth == c.model.depth
  for mixer, fields in own.items():
    assert solved.model.mixers[mixer].get("head") == fields.get("head")


@pytest.mark.parametrize("name", ["lru", "experts"])
def test_a_budget_of_flops(name):
  c = config(name, "small")
  c.model.vocab.size = 256
  solved = sizes.solve(c, 500_000, of="FLOPs a token")
  made = arch.count(arch.abstract(solved.model), c.model.length)
  assert abs(made.forward.total / 500_000 - 1) < 0.01


def test_proportions_stay_near_the_config():
  c = config("attention", "small")
  c.model.vocab.size = 256
  solved = sizes.solve(c, 2_000_000)
  width = solved.model.channels.swiglu.width
  usual = c.model.channels.swiglu.width * solved.model.dim / c.model.dim
  assert abs(width / usual - 1) < 0.2


def test_a_budget_that_no_width_reaches():
  c = config("attention", "small")
  c.model.vocab.size = 256
  with pytest.raises(
    ValueError, match="no width reaches 5,000.*dim=32.*dim=16384"
  ):
    sizes.solve(c, 5000)
  with pytest.raises(ValueError, match="reaches 500,000,000,000.*dim=16384"):
    sizes.solve(c, 500_000_000_000)


def test_a_config_that_is_wrong_at_every_width_says_why():
  c = config("attention", "small")
  c.model.mixers.attention.head = 31
  with pytest.raises(
    ValueError, match="of head=31.*turns 31, which must be even"
  ):
    sizes.solve(c, 500_000)


def test_a_second_size_that_the_config_does_not_set():
  c = config("attention", "small")
  c.match.size = "model.channels.swglu.width"
  with pytest.raises(ValueError, match="no 'swglu'. did you mean 'swiglu'"):
    sizes.solve(c, 500_000)


@pytest.mark.parametrize("name", ["s4d", "mamba3"])
@pytest.mark.parametrize("grows", [False, True])
def test_a_second_size_that_must_be_even(name, grows):
  c = config(name, "small")
  c.model.vocab.size = 256
  c.match = dict(size=f"model.mixers.{name}.state", grows=grows)
  # at a width of 64 mamba3 goes from 399,856 on
  solved = sizes.solve(c, 450_000)
  assert abs(sizes.parameters(solved) / 450_000 - 1) < 0.01
  assert solved.model.mixers[name].state % 2 == 0
