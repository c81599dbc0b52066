"""The blocks of a model, one after another; it never sees a vocabulary.

The longest periodic run of places is stacked and scanned over (unrolled where
the target likes that), the rest runs one by one.

B batch  T time  D width  n repeats of a stack
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from arch import arrays, pattern, target
from arch.law import At, Aux
from arch.layers import Difference, Linear
from arch.registry import find
from arch.remat import applied
from arch.roles import Gate, Matrix, Progress


class Trunk(nnx.Module):
  def __init__(self, cfg, *, rngs):
    self.places = places = pattern.expand(cfg)
    self.remat = cfg.remat
    self.shares = ()
    for layer, place in enumerate(places):
      if place.share and place.visit == 0:
        made = block(place, cfg, layer=jnp.int32(layer), rngs=rngs)
        setattr(self, f"shared_{place.share}", made)
        self.shares += (place.share,)
    self.once = Once(places, rngs=rngs)
    maps = {name: linears(made) for name, made in self.shared.items()}

    start = 0
    self.repeats = ()
    for i, (n, period) in enumerate(pattern.stacks(places)):
      keys = jax.random.split(rngs.params(), n)
      layers = start + len(period) * jnp.arange(n, dtype=jnp.int32)
      setattr(self, f"stack_{i}", stacked(period, cfg, keys, layers, maps))
      self.repeats += (n,)
      start += n * len(period)
    parts = [part for place in places for part in place.parts]
    names = {name for part in parts for name in part.cfg.writes}
    names |= {"embedding" for part in parts if reads_embedding(part)}
    for place in places:
      names.update(getattr(find("wiring", place.wiring), "STREAMS", ()))
    self.streams = tuple(sorted(names))
    if any(place.late for place in places):
      self.progress = Progress(jnp.float32(0))

  @property
  def stacks(self):
    """(name, n, the stack) of each."""
    names = [f"stack_{i}" for i in range(len(self.repeats))]
    stacks = [getattr(self, name) for name in names]
    return list(zip(names, self.repeats, stacks, strict=True))

  @property
  def visits(self):
    """A Visit of every layer, in their order."""
    left = iter(self.places)
    for name, n, stack in self.stacks:
      for _ in range(n):
        for j in range(len(stack.places)):
          place = next(left)
          shared = (f"shared_{place.share}",)
          yield Visit(
            place,
            shared if place.share else (name, f"block_{j}"),
            (name, f"own_{j}"),
          )

  @property
  def shared(self):
    return {name: getattr(self, f"shared_{name}") for name in self.shares}

  def init_state(self, batch: int, length: int | None = None):
    """A fresh state; a ring of `length` keys where memory is not fixed."""

    def make(stack):
      return stack.init_state(self.shared, batch, length)

    return {
      name: jax.vmap(make, axis_size=n)(stack) for name, n, stack in self.stacks
    }

  def __call__(self, x, reset=None, state=None, *, key=None):
    """x B T D after the last block, the state after the last token, Aux."""
    stream = {
      name: x if name == "embedding" else jnp.zeros_like(x)
      for name in self.streams
    }
    new, aux = {}, {}
    shared, once = self.shared, self.once
    progress = self.progress[...] if hasattr(self, "progress") else None

    def body(carry, xs):
      x, stream = carry
      stack, state, layer = xs
      k = None if key is None else jax.random.fold_in(key, layer)
      at = At(reset, stream, layer, k, once, progress=progress)
      x, state, at, aux = stack(x, state, at, shared, self.remat)
      return (x, at.stream), (state, aux)

    layer = 0
    for name, n, stack in self.stacks:
      period = len(stack.places)
      layers = layer + period * jnp.arange(n, dtype=jnp.int32)
      xs = stack, None if state is None else state[name], layers
      layer += n * period
      if n <= target.now().unroll:
        carry, ys = (x, stream), []
        for part in unstack(xs, n):
          carry, y = body(carry, part)
          ys.append(y)
        (x, stream), (new[name], aux[name]) = carry, restack(ys)
      else:
        (x, stream), (new[name], aux[name]) = jax.lax.scan(
          body, (x, stream), xs
        )
    return x, new, self._collect(aux, progress)

  def _collect(self, found, progress) -> Aux:
    """One Aux of those of every block, which have an axis of repeats."""
    loss, statistics, new, shared = jnp.float32(0), {}, {}, {}
    for name, n, stack in self.stacks:
      for j, place in enumerate(stack.places):
        aux = found[name][f"block_{j}"]
        run = jnp.ones(n)
        if place.late:
          run *= jnp.where(awake(place, progress), 1.0, 0.0)
        loss += jnp.sum(aux.loss)
        if aux.next and place.share:
          shared.setdefault(place.share, []).append((run, aux.next))
        elif aux.next:
          new.setdefault(name, {})[f"block_{j}"] = aux.next
        for key, value in aux.statistics.items():
          statistics.setdefault(key, []).append(
            (run, jnp.broadcast_to(value, n))
          )
    # every place that shares a buffer proposes a value: their mean is taken
    for name, several in shared.items():
      new[f"shared_{name}"] = mean(several)
    statistics = {name: mean(several) for name, several in statistics.items()}
    return Aux(loss, statistics, new)


def mean(several):
  """Of trees with an axis of repeats, each beside its repeats' weights."""
  weights, trees = zip(*several, strict=True)
  weights = jnp.concatenate(weights)
  weights /= jnp.sum(weights)
  return jax.tree.map(
    lambda *a: jnp.tensordot(weights, jnp.concatenate(a), 1), *trees
  )


class Visit(NamedTuple):
  """Where the arrays of a layer lie, in paths below the trunk.

  Attributes:
    place: what it is.
    block: its block's, which have an axis of repeats, unless they are shared.
    own: those that it has to itself, with that axis.
  """

  place: pattern.Place
  block: tuple[str, ...]
  own: tuple[str, ...]


def awake(place, progress):
  """Whether so much of training is done that a late place is run."""
  return progress >= place.late


def passing(run, block, x, state, at):
  """As `run`, but that x passes by: the state, and what crosses layers, stay as
  they are, and what else a block answers is 0."""
  _, new, aux = jax.eval_shape(run, block, x, state, at)
  new, aux = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), (new, aux))
  stream = {name: at.stream[name] for name in aux.stream}
  return x, new if state is None else state, aux._replace(stream=stream)


def reads_embedding(part) -> bool:
  return part.cfg.embedding or "embedding" in part.cfg.reads


def block(place, cfg, *, layer, rngs):
  made = find("wiring", place.wiring).Block(place, cfg, layer=layer, rngs=rngs)
  for part in place.parts:
    arrays.mark(getattr(made, part.slot), group=part.scope)
  arrays.mark(made, group="norm")  # what is left joins these to the stream
  return made


class Stack(nnx.Module):
  """The blocks of one period; Trunk holds n of it, on a leading axis."""

  def __init__(self, places, cfg, maps, *, layer, rngs):
    self.places = places
    for i, place in enumerate(places):
      if not place.share:
        made = block(place, cfg, layer=layer + i, rngs=rngs)
        setattr(self, f"block_{i}", made)
      if place.apart:
        own = Own(place, cfg, maps.get(place.share, {}), rngs=rngs)
        setattr(self, f"own_{i}", own)

  def block(self, i, shared):
    share = self.places[i].share
    if not share:
      return getattr(self, f"block_{i}")
    if not self.places[i].rank:
      return shared[share]
    return getattr(self, f"own_{i}").beside(shared[share])

  def init_state(self, shared, batch, length):
    return {
      f"block_{i}": self.block(i, shared).init_state(batch, length)
      for i in range(len(self.places))
    }

  def __call__(self, x, state, at, shared, remat):
    """x, the new state, `at` with the stream after it, each block's Aux."""
    new, aux, layer, key = {}, {}, at.layer, at.key

    def run(block, *args):
      return block(*args)

    run = applied(run, remat)
    for i in range(len(self.places)):
      name = f"block_{i}"
      at = at.replace(
        layer=layer + i,
        key=None if key is None else jax.random.fold_in(key, i),
        own=getattr(self, f"own_{i}", None),
      )
      old = None if state is None else state[name]
      args = self.block(i, shared), x, old, at
      if self.places[i].late:
        by = functools.partial(passing, run)
        on = awake(self.places[i], at.progress)
        x, new[name], more = jax.lax.cond(on, run, by, *args)
      else:
        x, new[name], more = run(*args)
      at = at.replace(stream=at.stream | more.stream)
      aux[name] = more._replace(stream={})
    return x, new, at, aux


def stacked(places, cfg, keys, layers, maps) -> Stack:
  """A Stack with a leading axis on every array, one place a key."""

  def make(key, layer):
    return Stack(places, cfg, maps, layer=layer, rngs=nnx.Rngs(key))

  made = nnx.vmap(make)(keys, layers)
  arrays.mark(made, layers=1)
  return made


def linears(block) -> dict[tuple, tuple[int, int, str]]:
  """Widths in and out and the group of every map that is a Matrix, by path."""
  found = {}
  for path, node in nnx.iter_graph(block):
    if isinstance(node, Linear):
      leaf = getattr(node, node.leaves[0])
      if isinstance(leaf, Matrix):
        group = leaf.get_metadata()["group"]
        found[path] = node.d_in, sum(node.widths), group
  return found


class Own(nnx.Module):
  """What a place has to itself, be its block shared: the map of an aside one,
  low-rank maps beside what is shared, and norms and scales of a loop's pass.

  Of a place that names `own` the maps are made by files of mixers and channel
  mixers that export Own(cfg, rank, *, rngs); what it makes is given to their
  calls as `own`. Of a loop with a rank every Linear has one.
  """

  def __init__(self, place, cfg, maps, *, rngs):
    for group in place.groups:
      part = group[0]
      if place.norms:
        setattr(self, part.norm, cfg.normaliser(part.width))
      if place.scales:
        setattr(self, part.scale, Gate(jnp.ones(cfg.dim)))
    arrays.mark(self, group="norm")
    self.maps = tuple(sorted(maps)) if place.rank else ()
    for i, path in enumerate(self.maps):
      d_in, d_out, group = maps[path]
      own = Difference(d_in, d_out, place.rank, rngs=rngs)
      arrays.mark(own, group=group)
      setattr(self, f"difference_{i}", own)
    if place.aside:
      kw = dict(dtype=cfg.compute, kind=cfg.weight, rngs=rngs)
      self.out = Linear(cfg.dim, cfg.dim, **kw)
      arrays.mark(self.out, group="mixer")
    parts = {part.slot: part for part in place.parts}
    for name, rank in place.own:
      if name not in parts:
        raise ValueError(
          f"own={dict(place.own)}: {name!r} is none of "
          f"{', '.join(place.mixers)}, nor the place's channel"
        )
      module = find(parts[name].kind, parts[name].name)
      if not hasattr(module, "Own"):
        raise ValueError(
          f"own={dict(place.own)}: {module.__name__} has no Own, which would "
          "make maps of a place's own"
        )
      if rank < 1:
        raise ValueError(f"own={dict(place.own)}: ranks must be positive")
      own = module.Own(parts[name].cfg, rank, rngs=rngs)
      arrays.mark(own, group=parts[name].scope)
      setattr(self, name, own)

  def beside(self, block):
    """The shared block, with this place's differences."""
    copy = nnx.merge(*nnx.split(block))
    for i, path in enumerate(self.maps):
      node = copy
      for name in path:
        node = getattr(node, name)
      node.difference = getattr(self, f"difference_{i}")
    return copy


class Once(nnx.Module):
  """What files of mixers build once a model, by the mixer's name.

  Such a file exports Shared(cfg, *, rngs), a module. Called with a layer's
  number, it gives what that layer's mixer reads.
  """

  def __init__(self, places, *, rngs):
    parts = {}
    for part in (part for place in places for part in place.parts):
      if hasattr(find(part.kind, part.name), "Shared"):
        parts.setdefault(part.name, []).append(part)
    for name, found in sorted(parts.items()):
      first = found[0]
      make = find(first.kind, name).Shared

      def shapes(cfg, make=make):
        state = nnx.eval_shape(lambda: nnx.state(make(cfg, rngs=nnx.Rngs(0))))
        return jax.tree.map(jnp.shape, nnx.to_pure_dict(state))

      cfgs = {part.cfg for part in found}
      if any(shapes(cfg) != shapes(first.cfg) for cfg in cfgs):
        raise ValueError(
          f"places of {name} differ in a field on which what they share "
          f"depends: write it below mixers.{name}"
        )
      made = make(first.cfg, rngs=rngs)
      arrays.mark(made, group=first.scope)
      setattr(self, name, made)


def unstack(tree, n: int):
  """n trees from one with a leading axis n; the gradient is one copy."""
  leaves, structure = jax.tree.flatten(tree)
  parts = [jax.lax.split(leaf, (1,) * n) for leaf in leaves]
  return [
    jax.tree.unflatten(structure, [jnp.squeeze(p[i], 0) for p in parts])
    for i in range(n)
  ]


def restack(trees):
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
