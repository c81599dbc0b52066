"""How fast each architecture is on this machine. Not a test.

python -m launch.bench [--archs=a,b] [--dim=256 --depth=4 --length=512
  --batch=8 --symbols=256] [--lengths=256,512,1024,4096,16384] [--out=FILE]
python -m launch.bench --kernels
python -m launch.bench --losses [--dim=256 --symbols=32768 --length=512
  --batch=16]
"""

import json

from absl import flags

from launch import command
from train import platform

ARCHS = flags.DEFINE_list(
  "archs", ["all"], "Configs to time, by their file's name, or all."
)
DIM = command.define_count("dim", 256, "Width of the residual stream.")
DEPTH = command.define_count(
  "depth", 4, "Blocks; more where a pattern is longer."
)
LENGTH = command.define_count("length", 512, "Tokens a sequence.")
BATCH = command.define_count("batch", 8, "Sequences a step.")
SYMBOLS = command.define_count(
  "symbols", 256, "Size of the vocabulary.", least=2
)
DTYPE = flags.DEFINE_enum(
  "dtype", "float32", ["float32", "bfloat16", "mixed"], "Compute dtype."
)
LENGTHS = flags.DEFINE_list(
  "lengths",
  ["256", "512", "1024", "4096", "16384"],
  "Step times at these lengths, all with the tokens of one sequence a device "
  "of the longest; '' for none.",
)
SECONDS = command.define_real("seconds", 3.0, "How long to repeat each timing.")
KERNELS = flags.DEFINE_bool(
  "kernels", False, "Time the recurrences against their references instead."
)
LOSSES = flags.DEFINE_bool(
  "losses", False, "Time the loss of every vocabulary's way out instead."
)
PEERS = flags.DEFINE_bool(
  "peers",
  False,
  "Also time PyTorch's own implementations of attention, mamba2, griffin and "
  "gated_deltanet (.[parity]), in every setting.",
)
OUT = flags.DEFINE_string("out", None, "Also write the numbers here, as JSON.")
AGAINST = flags.DEFINE_string(
  "against", None, "Compare with an earlier --out, of the same sizes."
)

HEAD = (
  f"{'':20} {'params':>9} {'compile':>8} {'tokens/s':>9} {'GFLOP/s':>8} "
  f"{'of peak':>7} {'memory':>8} {'decode/s':>8}"
)
MEMORY = "--dtype=bfloat16, or a smaller --batch, --length, --lengths or --dim"


def main(argv):
  command.no_more(argv)
  lengths = whole_numbers(LENGTHS.value)
  platform.setup(command.PLATFORM.value, platform.apart([DTYPE.value]))

  import jax

  from train import workdir

  if OUT.value:
    workdir.check_writable(OUT.value)
  earlier = read(AGAINST.value) if AGAINST.value else {}
  if PEERS.value:
    from train import peers

    peers.check()

  # a program that an earlier start kept would compile in no time
  jax.config.update("jax_enable_compilation_cache", False)
  machine = platform.machine()
  command.say(", ".join(f"{k} {v}" for k, v in machine.items()))
  found = {
    "command": platform.command(),
    "machine": machine,
    "versions": platform.versions(),
  }
  if LOSSES.value:
    found |= losses()
  else:
    found |= kernels() if KERNELS.value else architectures(lengths, earlier)
  if OUT.value:
    workdir.replace(OUT.value, json.dumps(found, indent=2) + "\n")


def read(path: str) -> dict:
  """Rows of architectures of an earlier --out, by what was timed.

  Raises:
    ValueError: it is none.
  """
  try:
    with open(path, encoding="utf-8") as file:
      rows = json.load(file)["architectures"]
    return {timed(row): row for row in rows}
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f"--against={path} is not what --out writes of architectures: {error!r}"
    ) from None


def timed(row: dict) -> tuple:
  """What a row is of."""
  names = "arch", "dim", "depth", "length", "batch", "symbols"
  return tuple(row[name] for name in names)


def whole_numbers(words: list[str]) -> list[int]:
  """Ascending lengths, each a divisor of the longest."""
  lengths = sorted(command.named_whole("--lengths", w, 1) for w in words)
  for length in lengths:
    if lengths[-1] % length:
      raise ValueError(
        f"--lengths: {length} must divide {lengths[-1]}, for equal tokens"
      )
  return lengths


def kernels() -> dict:
  from train import bench

  command.say(
    "value and gradient at T=2048: the reference, the twin beside it\n"
    f"{'':32} {'ms':>9} {'ms':>9} {'times':>6}   {'MiB':>8} {'MiB':>8}"
  )
  rows = []
  for row in bench.kernels(SECONDS.value):
    old, new = row["reference"], row["fast"]
    times = [p["seconds"] and 1e3 * p["seconds"] for p in (old, new)]
    ratio = times[0] / times[1] if all(times) else None
    told = ["too large" if t is None else f"{t:.1f}" for t in times]
    told += ["" if ratio is None else f"{ratio:.1f}"]
    kept = [p["memory_bytes"] / 2**20 for p in (old, new)]
    command.say(
      f"{row['recurrence']:22} {row['twin']:9} "
      f"{told[0]:>9} {told[1]:>9} {told[2]:>6}   "
      f"{kept[0]:8,.1f} {kept[1]:8,.1f}"
    )
    rows.append(row)
  return {"recurrences": rows}


def losses() -> dict:
  from train import bench

  V = SYMBOLS.value if SYMBOLS.present else 32_768
  B = BATCH.value if BATCH.present else 16
  command.say(
    f"value and gradient of the loss: {B} x {LENGTH.value} tokens of width "
    f"{DIM.value} in {DTYPE.value}, {V:,} symbols\n"
    f"{'way out':24} {'params':>10} {'s':>8} {'times':>6} {'MiB':>8}"
  )
  rows = []
  for row in bench.losses(
    DIM.value, V, B, LENGTH.value, DTYPE.value, SECONDS.value
  ):
    rows.append(row)
    times = rows[0]["seconds"] / row["seconds"]
    command.say(
      f"{row['output']:24} {row['params']:10,} {row['seconds']:8.2f} "
      f"{times:6.2f} {row['memory_bytes'] / 2**20:8,.0f}"
    )
  return {"losses": rows}


def architectures(lengths: list[int], earlier: dict) -> dict:
  import configs
  from arch import target
  from train import bench, peers, progress

  cfgs = configs.several(ARCHS.value)
  peak = platform.peak(DTYPE.value)
  command.say(
    f"matrix products in {DTYPE.value} reach {peak / 1e9:.0f} GFLOP/s; "
    f"dim {DIM.value}, depth {DEPTH.value}, length {LENGTH.value}, batch "
    f"{BATCH.value}, {SYMBOLS.value} symbols; {target.now()}\n{HEAD}"
  )
  rows = []
  for name, cfg in progress.bar(cfgs.items(), "configs", unit="config"):
    cfg = bench.resize(
      cfg,
      dim=DIM.value,
      depth=DEPTH.value,
      length=LENGTH.value,
      batch=BATCH.value,
      symbols=SYMBOLS.value,
      dtype=DTYPE.value,
    )
    row = {"arch": name} | bench.measure(cfg, peak, SECONDS.value)
    command.say(
      f"{name:20} {row['params']:9,} {row['compile_seconds']:6.1f} s "
      f"{row['tokens_per_second']:9,.0f} {row['flops_per_second'] / 1e9:8.1f} "
      f"{row['share_of_peak']:7.1%} {row['memory_bytes'] / 2**20:4,.0f} MiB "
      f"{row['decode_tokens_per_second']:8,.0f}"
    )
    if earlier:
      command.say(f"  {compared(row, earlier.get(timed(row)))}")
    row["peers"] = []
    if PEERS.value and name in peers.PEERS:
      others = peers.steps(name, cfg)
      for peer in bench.beside(cfg, others, SECONDS.value):
        row["peers"].append(peer)
        command.say(f"  {beside(peer)}")
    row["growth"] = []
    for point in bench.growth(cfg, lengths, SECONDS.value):
      row["growth"].append(point)
      ratio = point["step_seconds"] / row["growth"][0]["step_seconds"]
      command.say(
        f"  {point['batch']:4} x {point['length']:6} tokens "
        f"{point['step_seconds']:7.2f} s a step, {ratio:.2f} times "
        f"that of T={lengths[0]}"
      )
    rows.append(row)
  return {"peak_flops_per_second": peak, "architectures": rows}


def compared(row: dict, old: dict | None) -> str:
  if old is None:
    return "not measured at these sizes in --against"
  times = old["step_seconds"] / row["step_seconds"]
  return (
    f"{times:.2f} times as fast as in --against: there {old['dtype']}, "
    f"{old['tokens_per_second']:,.0f} tokens/s, {old['compile_seconds']:.1f} s "
    f"to compile, {old['memory_bytes'] / 2**20:,.0f} MiB"
  )


def beside(peer: dict) -> str:
  what = f"PyTorch {peer['peer']}, {peer['dtype']}, {peer['way']}"
  if "refused" in peer:
    return f"{what}: {peer['refused']}"
  times = peer["step_seconds"] / peer["ours_seconds"]
  return (
    f"{what}: {peer['params']:,} parameters, {peer['compile_seconds']:.1f} s, "
    f"{peer['tokens_per_second']:,.0f} tokens/s; ours, in turns with it, "
    f"{times:.2f} times as fast"
  )


if __name__ == "__main__":
  command.run(main, memory=MEMORY, prepared=False)
