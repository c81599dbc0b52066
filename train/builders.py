"""Text sets that this project prepares for TFDS itself, without TensorFlow.

`Stdlib` is the source text of the running Python's own standard library: real
text on every machine, with no download. `TinyShakespeare` writes the records
of TFDS's builder of that name and version, which needs TensorFlow.

Importing this module imports tensorflow_datasets.
"""

import hashlib
import pathlib
import sysconfig
import urllib.request

import tensorflow_datasets as tfds

from train import corpus, sources

# tests would teach literals, the last two are not the standard library
LEFT_OUT = {"test", "tests", "idlelib", "site-packages", "dist-packages"}

SHAKESPEARE = (
  "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/"
  "tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = (
  "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
)


def stdlib_folder() -> pathlib.Path:
  return pathlib.Path(sysconfig.get_paths()["stdlib"])


def stdlib_files() -> dict[str, bytes]:
  """Relative name -> content of every file of `stdlib` that is not empty."""
  root = stdlib_folder()
  files = {}
  for path in sorted(root.rglob("*.py")):
    name = path.relative_to(root)
    if LEFT_OUT.isdisjoint(name.parts) and path.is_file():
      if text := path.read_bytes():
        files[name.as_posix()] = text
  return files


class Stdlib(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """The .py text of the running Python's standard library."""

  name = "stdlib"
  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      features=tfds.features.FeaturesDict(
        {"name": tfds.features.Text(), "text": tfds.features.Text()}
      ),
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    files = {split: {} for split in sources.TFDS}
    for name, text in stdlib_files().items():
      files[corpus.split_of(name.encode())][name] = text
    return {
      sources.TFDS[split]: self._generate_examples(part)
      for split, part in files.items()
    }

  def _generate_examples(self, files):
    for name, text in files.items():
      yield name, {"name": name, "text": text}


class TinyShakespeare(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """char-rnn's tinyshakespeare: 90 / 5 / 5 % of one text, a record each."""

  name = "tiny_shakespeare"
  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
      homepage=SHAKESPEARE,
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # it retries for minutes before it says "no network"
    with urllib.request.urlopen(SHAKESPEARE, timeout=20) as page:
      text = page.read()
    found = hashlib.sha256(text).hexdigest()
    if found != SHAKESPEARE_SHA256:
      raise ValueError(
        f"{SHAKESPEARE} has SHA-256 {found}, expected {SHAKESPEARE_SHA256}"
      )
    a, b = len(text) * 90 // 100, len(text) * 95 // 100
    parts = {"train": text[:a], "validation": text[a:b], "test": text[b:]}
    return {
      split: self._generate_examples(split, part)
      for split, part in parts.items()
    }

  def _generate_examples(self, split, text):
    yield split, {"text": text}
