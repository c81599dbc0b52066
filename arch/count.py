"""Parameters, FLOPs a token and state bytes of a model, by group.

Groups are `vocab`, `mixer`, `channel` and `norm` (the shell's own: norms
between the mixers, residual additions). FLOPs are read from the jaxpr, so
nothing runs and a model of shapes will do:

  products     2 M N K of a matrix product, 2 of each multiply-add of a
               convolution, n^2 m of a triangular solve, as often as the scans
               around it turn
  elementwise  1 for each floating number that arithmetic or a transcendental
               function gives, or that a reduction takes; M N of an outer
               product; 5 n log2 n of a Fourier transform of n numbers

Data movement, comparisons, selections, casts and integers are free. XLA's own
cost_analysis counts the body of a scan once, which makes recurrences look
cheap. What a mask throws away is counted, since it is computed. A model costs
what it costs on a CPU, in chunks of 32, whatever the machine that counts.

Raises ValueError where the groups do not sum to the whole, at a while loop,
whose number of turns is not known, and at a primitive of unknown cost, as
factorisations are.
"""

import dataclasses
import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core
from jax.interpreters import partial_eval

from arch import arrays, target
from arch.roles import Embedding

GROUPS = ("vocab", "mixer", "channel", "norm")
KINDS = ("products", "elementwise")

TARGET = "cpu"

GIVES = frozenset(
  "add add_any sub mul div rem neg abs sign max min clamp pow integer_pow "
  "square sqrt rsqrt cbrt exp exp2 expm1 log log1p logistic tanh sin cos tan "
  "sinh cosh asin acos atan atan2 asinh acosh atanh erf erfc erf_inv lgamma "
  "digamma bessel_i0e bessel_i1e cumsum cumprod cummax cummin "
  "cumlogsumexp reciprocal".split()
)
TAKES = frozenset(
  "reduce_sum reduce_prod reduce_max reduce_min scatter-add scatter-sub "
  "scatter-mul scatter-min scatter-max".split()
)
CALLS = frozenset(
  "jit pjit closed_call core_call call remat remat2 checkpoint cond scan while "
  "custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr custom_vmap_call "
  "composite pallas_call".split()
)
FORMULAS = frozenset(
  "dot_general ragged_dot_general conv_general_dilated triangular_solve fft "
  "reduce_window_sum reduce_window_max reduce_window_min".split()
)
FREE = frozenset(
  # movement
  "broadcast_in_dim broadcast_to reshape squeeze transpose rev concatenate "
  "split stack unstack tile repeat roll pad slice dynamic_slice "
  "dynamic_update_slice "
  "gather scatter copy copy_p device_put iota zeros_like empty empty2 complex "
  "real imag conj get swap masked_load masked_swap load new_ref freeze name "
  "optimization_barrier stop_gradient sharding_constraint layout_constraint "
  "reshard pvary pcast create_token after_all debug_callback debug_print "
  # comparisons and selections
  "eq ne lt le gt ge eq_to lt_to le_to is_finite select_n argmax argmin sort "
  "top_k approx_top_k reduce_and reduce_or reduce_xor reduce_argmax "
  # casts
  "convert_element_type bitcast_convert_type reduce_precision floor ceil round "
  "nextafter "
  # integers and bits
  "and or xor not shift_left shift_right_logical shift_right_arithmetic clz "
  "mulhi population_count axis_index program_id num_programs multiple_of "
  "random_seed random_wrap random_unwrap random_bits random_split "
  "random_fold_in random_clone threefry2x32 rng_bit_generator "
  "rng_uniform".split()
)


@dataclasses.dataclass(frozen=True)
class Flops:
  """Operations a token, by group."""

  products: dict[str, float]
  elementwise: dict[str, float]

  @property
  def groups(self) -> dict[str, float]:
    return {g: self.products[g] + self.elementwise[g] for g in GROUPS}

  @property
  def total(self) -> float:
    return sum(self.groups.values())


@dataclasses.dataclass(frozen=True)
class Decoding:
  """One token from a carried state: its cost, the state's bytes by group."""

  flops: Flops
  state: dict[str, int]

  @property
  def bytes(self) -> int:
    return sum(self.state.values())


@dataclasses.dataclass(frozen=True)
class Count:
  """The sizes and costs of a model at one length.

  Attributes:
    groups: parameters by group.
    embedding: how many of them have the role Embedding.
    active: how many a token uses: all but what the modules' `idle()` give,
      if they have one, as experts do.
    forward: FLOPs a token of one call with T = length, logits included.
    training: FLOPs a token of a training step: three times those of the call
      and of what only training asks for, since a pass backward takes two.
    decoding: one token from a state that looks `length` tokens back.
  """

  groups: dict[str, int]
  embedding: int
  active: int
  forward: Flops
  training: float
  decoding: Decoding

  @property
  def params(self) -> int:
    return sum(self.groups.values())


@target.using(TARGET)
def count(model, length: int) -> Count:
  """Counts a model, which may be abstract, at `length` tokens."""
  groups = dict.fromkeys(GROUPS, 0)
  embedding = 0
  for path, p in nnx.to_flat_state(nnx.state(model, nnx.Param)):
    size = math.prod(p.shape)
    group = p.get_metadata().get("group")
    if group not in groups:
      raise ValueError(
        f"parameter {'.'.join(map(str, path))} is of no group, but of {group}"
      )
    groups[group] += size
    embedding += size if isinstance(p, Embedding) else 0
  params, _ = arrays.pure(model)
  whole = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
  if sum(groups.values()) != whole:
    raise ValueError(
      f"{groups} sum to {sum(groups.values())}, the model has {whole}"
    )
  modules = (node for _, node in nnx.iter_graph(model))
  idle = sum(node.idle() for node in modules if hasattr(node, "idle"))
  tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
  call = forward(model, length)
  more = per_token(flops(_asked_in_training, model, tokens), length)
  return Count(
    groups=groups,
    embedding=embedding,
    active=whole - idle,
    forward=call,
    training=3 * (call.total + more.total),
    decoding=decoding(model, length),
  )


@target.using(TARGET)
def forward(model, length: int) -> Flops:
  """FLOPs a token of one call with T = length, logits included."""
  tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
  ops = flops(lambda model, tokens: model(tokens)[0], model, tokens)
  return per_token(ops, length)


def _asked_in_training(model, tokens):
  """What a loss adds to the call; features of 0 cost what any do."""
  vocab = model.vocab
  x = jnp.zeros((*tokens.shape, vocab.cfg.dim), vocab.cfg.dtype)
  return vocab.later(x, tokens, jnp.ones(tokens.shape))


@target.using(TARGET)
def decoding(model, length: int) -> Decoding:
  """Costs of one token from a state that looks `length` tokens back."""
  state = jax.eval_shape(lambda model: model.init_state(1, length), model)
  size = dict.fromkeys(GROUPS, 0)
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    # trunk, stack, block, module, and then what it likes
    names = [getattr(entry, "key", None) for entry in path]
    group = "channel" if "channel" in names else "mixer"
    if names[0] == "vocab":
      group = "vocab"
    size[group] += math.prod(leaf.shape) * leaf.dtype.itemsize
  token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  ops = flops(
    lambda *args: args[0](args[1], state=args[2]), model, token, state
  )
  return Decoding(per_token(ops, 1), size)


def per_token(ops: Counter, tokens: int) -> Flops:
  return Flops(*({g: ops[k, g] / tokens for g in GROUPS} for k in KINDS))


@target.using(TARGET)
def flops(function, *args) -> Counter:
  """Operations of function(*args) by (kind, group)."""
  jaxpr = jax.make_jaxpr(function)(*args).jaxpr
  # what nothing reads is not run, as the state after training's last token
  jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  return walk(jaxpr, "norm")


def walk(jaxpr, group: str) -> Counter:
  """Operations of a jaxpr that is called from a scope of `group`."""
  total = Counter()
  for eqn in jaxpr.eqns:
    here = group
    if group == "norm":  # the outermost scope holds for all that it calls
      scopes = re.findall(r"\w+", str(eqn.source_info.name_stack))
      here = next((scope for scope in scopes if scope in GROUPS), group)
    if eqn.primitive.name not in CALLS:
      kind, ops = cost(eqn)
      total[kind, here] += ops
      continue
    inner = [walk(jaxpr, here) for jaxpr in called(eqn)]
    if eqn.primitive.name == "cond":
      inner = [max(inner, key=Counter.total)]
    for ops in inner:
      for key in ops:
        total[key] += ops[key] * turns(eqn)
  return total


def called(eqn):
  """The jaxprs that an equation runs: jit, scan, remat, custom_vjp ..."""
  for value in eqn.params.values():
    for part in value if isinstance(value, tuple) else (value,):
      if isinstance(part, core.ClosedJaxpr):
        yield part.jaxpr
      elif isinstance(part, core.Jaxpr):
        yield part


def turns(eqn) -> int:
  """How often an equation runs what it calls."""
  match eqn.primitive.name:
    case "while":
      raise ValueError(
        "a while loop of unknown length cannot be counted: use scan, or "
        "fori_loop with bounds that are Python ints"
      )
    case "scan":
      return eqn.params["length"]
    case "pallas_call":
      return math.prod(eqn.params["grid_mapping"].grid)
  return 1


def cost(eqn) -> tuple[str, int]:
  """Kind and number of an equation's own operations."""
  name = eqn.primitive.name
  if name in FREE:
    return "elementwise", 0
  if name not in GIVES | TAKES | FORMULAS:
    raise ValueError(
      f"the cost of {name!r} is not known: write the model without it, or add "
      "its formula to arch/count.py"
    )
  out, p = eqn.outvars[0].aval, eqn.params
  first, last = eqn.invars[0].aval, eqn.invars[-1].aval
  match name:
    case "dot_general":
      (axes, _), _ = p["dimension_numbers"]
      K = math.prod(first.shape[axis] for axis in axes)
      if K == 1:  # adds nothing up: einsum writes multiplications so
        return "elementwise", out.size
      return "products", 2 * out.size * K
    case "ragged_dot_general":
      (axes, _), _ = p["ragged_dot_dimension_numbers"].dot_dimension_numbers
      K = math.prod(first.shape[axis] for axis in axes)
      return "products", 2 * out.size * K
    case "conv_general_dilated":
      channels = p["dimension_numbers"].rhs_spec[0]
      return "products", 2 * out.size * (last.size // last.shape[channels])
    case "triangular_solve":
      return "products", out.size * first.shape[-1]
    case "fft":
      n = math.prod(p["fft_lengths"])
      numbers = max(first.size, out.size)
      return "elementwise", round(5 * numbers * math.log2(n))
    case "reduce_window_sum" | "reduce_window_max" | "reduce_window_min":
      return "elementwise", out.size * math.prod(p["window_dimensions"])
  # the last operand is what a scatter adds, and all that a reduction has
  number = out if name in GIVES else last
  inexact = jnp.issubdtype(number.dtype, jnp.inexact)
  return "elementwise", number.size * inexact
