"""That the bench runs and its numbers fit each other; never how fast."""

import jax
import models
import pytest
from test_vocab import FILES

import arch
import configs
from launch.bench import whole_numbers
from train import bench, sizes


def test_bench():
  cfg = bench.resize(
    configs.load("mamba2"),
    dim=32,
    depth=1,
    length=8,
    batch=2,
    symbols=11,
    dtype="float32",
  )
  row = bench.measure(cfg, peak=1e9, seconds=0.01)
  assert row["tokens_per_second"] == pytest.approx(16 / row["step_seconds"])
  flops = arch.count(arch.abstract(cfg.model), 8).forward.total
  assert row["flops_per_second"] / row["tokens_per_second"] == 3 * flops
  assert row["share_of_peak"] == row["flops_per_second"] / 1e9
  assert row["decode_tokens_per_second"] > 0
  # parameters, and AdamW's two moments of each
  assert row["memory_bytes"] > 3 * 4 * row["params"]
  point = next(bench.growth(cfg, [2, 4], 0.01))
  assert (point["length"], point["batch"]) == (2, 2 * jax.device_count())


@pytest.mark.parametrize("name", ["retnet", "rglru"])
def test_a_mixer_alone(name):
  row = bench.mixer(configs.load(name), name, T=8, seconds=0.01)
  assert row["seconds"] > 0 and row["memory_bytes"] > 4 * 8 * 256


@pytest.mark.parametrize("name", models.CONFIGS)
def test_every_config_resizes(name):
  cfg = bench.resize(
    configs.load(name),
    dim=256,
    depth=4,
    length=64,
    batch=2,
    symbols=256,
    dtype="float32",
  )
  assert sizes.parameters(cfg) > 256 * 256


def test_losses_are_of_every_way_out():
  whole, *rows = bench.losses(4, 16, 2, 3, "float32", 0.001)
  assert [row["output"] for row in rows] == FILES["output"]
  full = next(row for row in rows if row["output"] == "full")
  assert full["params"] == whole["params"] == 16 * 4
  assert all(r["seconds"] > 0 and r["memory_bytes"] > 0 for r in rows)


@pytest.mark.parametrize("words", [["8", "x"], ["0"], ["3", "8"]])
def test_lengths_are_refused(words):
  with pytest.raises(ValueError, match="--lengths"):
    whole_numbers(words)
