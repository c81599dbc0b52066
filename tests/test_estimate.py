"""What a comparison would take on a TPU, by a compiler that is here."""

import importlib.util
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from models import ROOT, config

import configs
from train import chips, estimate
from train.chips import CHIPS, GIB, Cost, Refused
from train.plan import Plan

V5E = CHIPS["v5e-1"]
OLD = jax.__version_info__ < (0, 8)
compiles = pytest.mark.skipif(
  OLD or not importlib.util.find_spec("libtpu"),
  reason="jax 0.7 crashes where it compiles for TPUs, or libtpu is missing",
)


@pytest.fixture(scope="module")
def chip():
  return chips.devices(V5E)


def cycles(function, chip, *shapes):
  here = jax.sharding.SingleDeviceSharding(chip[0])
  args = [jax.ShapeDtypeStruct(s, d, sharding=here) for s, d in shapes]
  text = jax.jit(function).lower(*args).compile().as_text()
  return chips.cycles(text, V5E)


SQUARE = (256, 256), jnp.bfloat16


def turning(n):
  def scan(x):
    return jax.lax.scan(lambda x, _: (jnp.tanh(x @ x), None), x, length=n)[0]

  return scan


def test_every_chip_can_be_asked_for():
  code = (
    "from launch import estimate; from train.chips import CHIPS; "
    "from absl import flags; flags.FLAGS(['x']); "
    "assert flags.FLAGS['chip'].parser.enum_values == [*CHIPS]; "
    "assert estimate.CHIP.value in CHIPS"
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@compiles
def test_a_loop_counts_as_often_as_it_turns(chip):
  (one, _), (four, _) = (cycles(turning(n), chip, SQUARE) for n in (100, 400))
  assert 3.9 < four / one < 4.1
  once, none = cycles(lambda x: jnp.tanh(x @ x), chip, SQUARE)
  assert 50 < one / once < 200 and not none


@compiles
def test_of_a_condition_the_longer_branch_counts(chip):
  def branched(n, m):
    def choose(p, x):
      return jax.lax.cond(p > 0, turning(n), turning(m), x)

    return cycles(choose, chip, ((), jnp.int32), SQUARE)[0]

  both, swapped, short = branched(90, 30), branched(30, 90), branched(30, 30)
  assert both == swapped and 2 < both / short < 3.1


@compiles
def test_what_the_compiler_does_not_say_is_named(chip):
  def until(x):
    return jax.lax.while_loop(
      lambda x: jnp.sum(x) > 0, lambda x: jnp.tanh(x @ x), x
    )

  def look(x):
    return jnp.take(x, jnp.argsort(x[:, 0]), axis=0)

  assert cycles(until, chip, SQUARE)[1] == {"loop": 1}
  big = (4096, 256), jnp.float32
  assert {"gather"} <= {*cycles(look, chip, big)[1]}


TEXT = """HloModule made_up

%body (x: f32[8]) -> f32[8] {
  ROOT %fusion.1 = f32[8] fusion(%x), calls=%f, {"estimated_cycles":"100"}
}

%ends (x: s32[]) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(7)
}

%never (x: s32[]) -> pred[] {
  %constant.2 = s32[]{:T(128)} constant(0)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %while.1 = f32[8] while(%x), condition=%ends, body=%body
  %while.2 = f32[8] while(%x), condition=%never, body=%body
  %all-reduce-start.3 = f32[8] all-reduce-start(%x), to_apply=%add
  %gather_fusion.4 = f32[8] fusion(%x), kind=kCustom, calls=%g
  %custom-call.5 = f32[8] custom-call(), custom_call_target="AllocateBuffer"
  ROOT %copy.6 = f32[8] copy(%x), {"estimated_cycles":"20"}
}
"""


def test_the_cycles_of_a_text():
  """Seven turns, one of unknown number, and what says nothing, by its kind."""
  found = {"loop": 1, "all-reduce-start": 1, "gather": 1}
  assert chips.cycles(TEXT, V5E) == (7 * 100 + 100 + 20, found)


@compiles
def test_a_kernel_counts_by_its_own_word(chip):
  from jax.experimental import pallas as pl

  def doubled(**told):
    def kernel(x_ref, y_ref):
      y_ref[...] = 2 * x_ref[...]

    def call(x):
      return pl.pallas_call(kernel, out_shape=x, **told)(x)

    return cycles(call, chip, SQUARE)

  def cost(flops, moved):
    own = pl.CostEstimate(flops=flops, transcendentals=0, bytes_accessed=moved)
    return doubled(cost_estimate=own)

  found, none = cost(round(V5E.peak), 0)
  assert found == pytest.approx(2 * V5E.clock, rel=1e-3) and not none
  found, none = cost(0, round(V5E.bandwidth))
  assert found == pytest.approx(V5E.clock / 0.7, rel=1e-3) and not none
  assert doubled()[1] == {"kernel": 1}


@compiles
def test_the_error_is_known(chip):
  errors = chips.errors(V5E, chip)
  assert len(errors) == 4 and all(1 < e < 4 for e in errors.values()), errors


def tiny(batch=8):
  c = config("attention")
  c.train.batch = batch
  return c


@compiles
def test_a_step_of_replicates_takes_more(chip):
  one = chips.step(tiny(), V5E, chip)
  two = chips.step(tiny(), V5E, chip, 2, own=True)
  assert 0 < one.seconds < two.seconds < 3 * one.seconds
  assert 0 < one.memory < two.memory < V5E.memory / 100
  assert one.compiling > 0


@compiles
def test_what_does_not_fit_says_how_much_it_wants(chip):
  with pytest.raises(
    Refused, match=r"^temporaries of \d+\.\d+G of 15.75G a chip$"
  ):
    chips.step(tiny(2**19), V5E, chip)


@pytest.mark.parametrize(
  ("said", "told"),
  [
    (
      "Ran out of memory on HBM, the total memory required for HLO temporaries "
      "(70.98G) exceeds available HBM (15.75G).",
      "temporaries of 70.98G of 15.75G a chip",
    ),
    (
      "XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
      "Used 1.21T of 15.75G hbm. Exceeded hbm capacity by 1.19T.",
      "1.21T of 15.75G a chip",
    ),
  ],
)
def test_both_ways_to_be_full_are_understood(said, told):
  def compile():
    raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {said}")

  with pytest.raises(Refused, match=f"^{told}$"):
    chips.compiled(compile, V5E)


def test_another_error_of_the_compiler_is_no_refusal():
  def compile():
    raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

  with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
    chips.compiled(compile, V5E)


def test_a_teacher_is_refused():
  c = tiny()
  c.train.teacher = "runs/large"
  with pytest.raises(
    ValueError, match="train.teacher=runs/large: leave it out"
  ):
    chips.step(c, V5E, [])


def test_what_cannot_compile_for_a_tpu_is_one_line(monkeypatch):
  monkeypatch.setattr(chips.jax, "__version_info__", (0, 7, 2))
  monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: name)
  with pytest.raises(ValueError, match="crashes where it compiles"):
    chips.devices(V5E)
  monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match="pip install libtpu"):
    chips.devices(V5E)


@pytest.fixture
def lines(monkeypatch, tmp_path):
  """The table of two arms whose steps cost what a function says."""
  monkeypatch.setattr(chips, "devices", lambda chip: [None] * 8)
  monkeypatch.setattr(chips, "libraries", lambda: "no library")
  errors = {"a product": 1.25, "a sum": 2.0}
  monkeypatch.setattr(chips, "errors", lambda *args: errors)
  (tmp_path / "book.txt").write_text("to be or not to be\n" * 600)
  budget = dict(params=None, tokens=36_000, length=16, batch=4)

  def table(step, together=0, processes=0, **fields):
    monkeypatch.setattr(chips, "step", step)
    data = f"text:{tmp_path / 'book.txt'}"
    plan = Plan(data=data, **budget, **fields)
    arms = configs.several(["attention", "lru"], plan.settings)
    return list(
      estimate.comparison(
        arms,
        plan,
        "v5e-1",
        together=together,
        processes=processes,
        say=print,
      )
    )

  return table


def test_hours_are_those_of_every_run(lines):
  def step(cfg, chip, devices, replicates, own):
    assert (replicates, own) in ((3, False), (2, True))
    return Cost(2.0, 0.5 * chip.memory, 90.0, {"sort": replicates})

  found = lines(step, seeds=2)
  text = "\n".join(found)
  assert "563 steps of 4 x 16 tokens" in text
  assert re.search(r"attention +3 rates +7.88 fits +1000–2000", text)
  assert "at most: 3 sort" in text
  # four programs of 563 steps of 2 s, or half of it, and 90 s of compiling
  assert found[-1] == (
    "training and compiling: 44 min to 1.4 h, of it compiling 6 min as it took "
    "here; 1 session of 12 h (Colab)"
  )


@pytest.mark.parametrize(
  ("fits", "words"),
  [
    (lambda c, n: c.model.remat != "none", "--remat=auto"),
    (lambda c, n: c.model.remat == "block", "--remat=block"),
    (
      lambda c, n: c.model.remat == "auto" and not n,
      "--remat=auto --together=1",
    ),
    (
      lambda c, n: c.train.accumulate == 4 and not n,
      "--remat=block --together=1 --set=train.accumulate=4",
    ),
    (
      lambda c, n: c.train.batch == 2,
      "--remat=block --together=1 --batch=2",
    ),
    (lambda c, n: False, None),
  ],
)
def test_what_does_not_fit_is_told_with_what_it_does(lines, fits, words):
  def step(cfg, chip, devices, replicates, own):
    if not fits(cfg, replicates):
      raise Refused("20.00G of 15.75G a chip")
    return Cost(1.0, 0.9 * chip.memory, 1.0, {})

  found = "\n".join(lines(step))
  assert "no: 20.00G of 15.75G a chip" in found
  if words:
    assert f"; with {words}\n" in found and " tight " in found
    assert f"each as it fits, by {words};" in found
  else:
    assert "nor with a batch of one" in found
    assert "without attention, lru:" in found and "session" not in found


def test_no_run_is_counted_twice_where_steps_are_one_program(lines):
  seen = []

  def step(cfg, chip, devices, replicates, own):
    seen.append((replicates, own))
    return Cost(1.0, GIB, 1.0, {})

  lines(step, seeds=1, lrs=(1e-2,))
  assert seen == [(0, False)] * 2


def test_runs_that_are_left_over_are_a_program_of_their_own(lines):
  seen = []

  def step(cfg, chip, devices, replicates, own):
    seen.append((replicates, own))
    return Cost(1.0, GIB, 60.0, {})

  found = lines(step, seeds=5, together=4)
  assert seen == [(3, False), (4, True), (0, False)] * 2
  # three times 563 steps of a second, or half of it, and a minute, of two arms
  assert "training and compiling: 34 min to 1.0 h" in found[-1], found[-1]


def test_chips_of_their_own_share_the_runs(lines):
  def step(cfg, chip, devices, replicates, own):
    assert (len(devices), replicates, own) == (1, 0, False)
    return Cost(2.0, GIB, 90.0, {})

  found = lines(step, seeds=3, processes=8)
  assert re.search(r"attention +6 runs +1.00 fits +1000–2000", "\n".join(found))
  # at most two arms' three runs at the same time
  assert found[0].startswith("v5e-1: 6 processes with a chip each of 15.75 GiB")
  # twelve runs of 563 steps of 2 s, or of half of it, on six chips; each chip
  # compiles once
  assert found[-1].startswith(
    "training and compiling: 20 min to 39 min, of it compiling 2 min"
  )
  with pytest.raises(ValueError, match="--chips=9, but v5e-1 has 8 chips"):
    lines(step, processes=9)


def test_nothing_fits_where_steps_have_parts(lines):
  def step(cfg, chip, devices, replicates, own):
    assert cfg.train.batch % cfg.train.accumulate == 0
    raise Refused("20.00G of 15.75G a chip")

  found = "\n".join(lines(step, settings=("train.accumulate=4",)))
  assert "nor with a batch of one" in found
