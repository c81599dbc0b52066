"""That the bench runs and its numbers fit each other; never how fast."""

import json

import jax
import models
import pytest
from test_vocab import FILES

import arch
import configs
from launch.bench import beside, compared, read, timed, whole_numbers
from train import bench, peers, sizes


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


def test_a_formula_that_is_too_large_is_not_run():
  def wide(x):
    jax.debug.callback(ran.append, 1)
    return x[:, None] * x[None]

  ran, x = [], {"x": jax.numpy.ones(256)}
  row = bench.both(wide, x, 0.01, most=1000)
  assert row["seconds"] is None and row["memory_bytes"] > 1000 and not ran
  assert bench.both(wide, x, 0.01, most=1 << 30)["seconds"] > 0 and ran


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


def small(name, dtype="float32"):
  return bench.resize(
    configs.load(name),
    dim=64,
    depth=2,
    length=8,
    batch=2,
    symbols=11,
    dtype=dtype,
  )


@pytest.mark.parametrize("name", peers.PEERS)
def test_a_peer_has_the_same_sizes_and_is_timed(name, monkeypatch):
  """But for a few: theirs have no start symbol, and other heads when narrow."""
  pytest.importorskip("transformers")
  peers.check()
  monkeypatch.setattr(peers, "SETTINGS", (("bfloat16", "eager"),))
  cfg = small(name)
  (row,) = bench.beside(cfg, peers.steps(name, cfg), 0.01)
  own = sizes.parameters(cfg)
  assert row["params"] == pytest.approx(own, rel=0.03)
  assert row["tokens_per_second"] == pytest.approx(16 / row["step_seconds"])
  assert row["ours_seconds"] > 0
  told = beside(row | {"ours_seconds": row["step_seconds"] / 2})
  assert "bfloat16, eager" in told and told.endswith("2.00 times as fast")


def test_a_setting_that_is_refused_is_said(monkeypatch):
  torch = pytest.importorskip("torch")
  pytest.importorskip("transformers")

  def compile(model):
    raise RuntimeError("no compiler\nmore")

  monkeypatch.setattr(torch, "compile", compile)
  monkeypatch.setattr(peers, "SETTINGS", (("float32", "compiled"),))
  cfg = small("attention")
  (row,) = bench.beside(cfg, peers.steps("attention", cfg), 0.01)
  assert beside(row).endswith("compiled: RuntimeError: no compiler")


def test_missing_peers_are_refused(monkeypatch):
  monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"--peers wants torch: pip install -e"):
    peers.check()


def test_a_row_is_compared_with_an_earlier_one(tmp_path):
  row = bench.measure(small("mingru", "mixed"), peak=1e9, seconds=0.01)
  row["arch"] = "mingru"
  file = tmp_path / "old.json"
  old = row | {"step_seconds": 2 * row["step_seconds"], "dtype": "float32"}
  file.write_text(json.dumps({"architectures": [old]}))
  earlier = read(str(file))
  assert compared(row, earlier[timed(row)]).startswith(
    "2.00 times as fast as in --against: there float32"
  )
  assert timed(row | {"dim": 5}) not in earlier
  assert compared(row, None) == "not measured at these sizes in --against"
  file.write_text("[]")
  with pytest.raises(ValueError, match="is not what --out writes"):
    read(str(file))
