"""Every mixer and channel mixer against its authors' code: tests/parity/,
whose files are found by their folder."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from models import CHANNELS, MIXERS, distance

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
if importlib.util.find_spec("fla") is None:
  pytest.skip("needs fla-core", allow_module_level=True)

KINDS = {"mixers": MIXERS, "channels": CHANNELS}
B = 2
TOLERANCE = 1e-4  # of the largest reference value


def module(kind, name):
  return importlib.import_module(f"parity.{kind}.{name}")


def files(kind):
  folder = Path(__file__).parent / "parity" / kind
  return sorted(path.stem for path in folder.glob("[a-z]*.py"))


# whatever is on record: attention, a diagonal recurrence, the delta rule
ALWAYS = ("attention", "gated_deltanet", "mamba")


def each(field, section):
  """kind, name and fields of every entry of this list of the parity files."""
  found = []
  for kind in KINDS:
    for name in files(kind):
      for i, fields in enumerate(getattr(module(kind, name), field)):
        mark = pytest.mark.recorded(kind, name, section, fields)
        label = "-".join([name, *map(str, fields.values())])
        marks = [mark] * (i > 0 or name not in ALWAYS)
        found.append(pytest.param(kind, name, fields, id=label, marks=marks))
  return pytest.mark.parametrize(("kind", "name", "fields"), found)


def arrays(tensors):
  return {name: t.detach().numpy() for name, t in tensors}


@each("CASES", "cases")
def test_values_gradients_and_decoding(kind, name, fields, record_property):
  torch.manual_seed(0)
  case = module(kind, name).case(**fields)
  theirs = case.theirs
  with torch.no_grad():
    for p in theirs.parameters():
      p.normal_(0, case.scale)
  dtype = next(theirs.parameters()).dtype
  shape = (B, case.length, case.cfg.dim)
  x = torch.randn(shape, dtype=dtype, requires_grad=True)
  ct = torch.randn(shape, dtype=dtype)
  y = case.call(theirs, x)
  (y * ct).sum().backward()

  ours = case.make(case.cfg, layer=np.int32(0), rngs=nnx.Rngs(0))
  graph, params, rest = nnx.split(ours, nnx.Param, ...)
  weights = case.weights(arrays(theirs.named_parameters()))
  nnx.replace_by_pure_dict(params, jax.tree.map(np.float32, weights))

  @jax.jit
  def call(params, x, ct):
    def forward(params, x):
      return nnx.merge(graph, params, rest)(x, None, None)[0]

    y, back = jax.vjp(forward, params, x)
    return y, *back(ct)

  given = (np.float32(t.detach().numpy()) for t in (x, ct))
  own, dparams, dx = call(params, *given)
  gradients = ((k, p.grad) for k, p in theirs.named_parameters())
  errors = {
    "value": distance(own, y.detach().numpy()),
    "gradient": distance(
      (dx, nnx.to_pure_dict(dparams)),
      (x.grad.numpy(), case.weights(arrays(gradients))),
    ),
  }
  if case.decode is not None:
    with torch.no_grad():
      step = case.decode(theirs)
      steps = [step(x[:, t : t + 1]) for t in range(case.length)]
    errors["decode"] = distance(own, torch.cat(steps, 1).numpy())
  about = {
    "source": module(kind, name).SOURCE,
    "fields": fields,
    "shape": shape,
    "tolerance": TOLERANCE,
    "errors": errors,
  }
  record_property("provenance", [kind, name, "cases", about])
  assert max(errors.values()) < TOLERANCE, errors


def alike(ours, theirs):
  """Whether draws (their first axis) are of one distribution, as far as each
  number's mean and the second moment of all go, in five standard errors.

  What does not vary between draws has to be equal.
  """
  for n in (1, 2):
    powers = [np.float64(x.reshape(len(x), -1)) ** n for x in (ours, theirs)]
    apart = powers[0].mean(0) - powers[1].mean(0)
    noise = sum(p.var(0, ddof=1).mean() / len(p) for p in powers)
    small = 1e-10 * np.mean(powers[1] ** 2) + 1e-12
    if n == 1 and np.mean(apart**2) > small + noise * (
      1 + 10 * np.sqrt(2 / apart.size)
    ):
      return False
    if apart.mean() ** 2 > small + 25 * noise / apart.size:
      return False
  return True


@each("START", "start")
def test_starts_as_theirs(kind, name, fields, record_property):
  """What both initialisations draw: see `alike`."""
  torch.manual_seed(0)
  make, cfg, draw = module(kind, name).start(**fields)
  drawn = [draw() for _ in range(8)]
  theirs = jax.tree.map(lambda *xs: np.stack(xs), *drawn)

  @jax.vmap
  def own(key):
    ours = make(cfg, layer=np.int32(0), rngs=nnx.Rngs(key))
    return nnx.to_pure_dict(nnx.state(ours, nnx.Param))

  ours = jax.jit(own)(jax.random.split(jax.random.key(0), 8))
  pairs = jax.tree.map(lambda *pair: pair, ours, theirs)
  about, wrong = {}, []
  flat = jax.tree_util.tree_flatten_with_path(
    pairs, is_leaf=lambda p: isinstance(p, tuple)
  )[0]
  for path, pair in flat:
    leaf = jax.tree_util.keystr(path, simple=True, separator=".")
    assert pair[0].shape == pair[1].shape, leaf
    about[leaf] = moments = [
      [float(f"{np.mean(x**n):.4g}") for n in (1, 2)] for x in pair
    ]
    wrong += [(leaf, *moments)] * (not alike(*pair))
  about = {"fields": fields, "ours, theirs": about}
  record_property("provenance", [kind, name, "start", about])
  assert not wrong, wrong


def test_every_file_belongs_to_a_mixer():
  for kind, names in KINDS.items():
    assert set(files(kind)) <= set(names)
