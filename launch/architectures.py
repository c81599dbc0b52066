"""What each token mixer, and each other part, is and was checked against.

python -m launch.architectures [--archs=a,b] [--out=FILE.html] [--check]
  [--measure]
"""

from absl import flags

from launch import command

OUT = flags.DEFINE_string("out", None, "Also write a page here.")
MEASURE = flags.DEFINE_bool(
  "measure", False, "First time these mixers and keep that in the record."
)
CHECK = flags.DEFINE_bool(
  "check", False, "Fail where a part is unverified or its record stale."
)
ARCHS = flags.DEFINE_list("archs", ["all"], "Mixers, or all.")
MEMORY = "fewer --archs"


def main(argv):
  command.no_more(argv)
  import configs
  from arch import registry
  from train import bench, progress, provenance, workdir
  from train.report import architectures

  names = ARCHS.value
  if names == ["all"]:
    names = registry.names("mixers")
  if not names:
    raise ValueError("--archs names no mixer: leave it out for all")
  for name in names:
    registry.find("mixers", name)
  if OUT.value:
    workdir.check_writable(OUT.value)
  for name in names if MEASURE.value else ():
    row = bench.mixer(configs.load(name), name)
    provenance.update({("mixers", name, "measured"): [row]})
    command.say(
      f"{name:18} {1e3 * row['seconds']:8.1f} ms "
      f"{row['memory_bytes'] / 2**20:8.1f} MiB"
    )
  with progress.bar(names, "mixers", unit="") as bar:
    table = provenance.rows(names=bar)
  parts = provenance.parts() if ARCHS.value == ["all"] else []
  print(architectures.text(table, parts))
  if OUT.value:
    workdir.replace(OUT.value, architectures.page(table, parts))
    print(f"\nwrote {OUT.value}")
  wrong = [row["name"] for row in [*table, *parts] if row["wrong"]]
  if CHECK.value and wrong:
    raise ValueError(
      f"{', '.join(wrong)}: unverified or stale; run pytest --provenance"
    )


if __name__ == "__main__":
  command.run(main, memory=MEMORY)
