"""What stands at a place of a pattern: the block, and what it shares.

B batch  T time  D width
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from arch.config import configure
from arch.layers import Linear
from arch.registry import find


def mixer_config(place, cfg, name):
  """The Config of one of a place's mixers."""
  known = {f.name for f in dataclasses.fields(find("mixers", name).Config)}
  return cfg.mixer(name, **{k: v for k, v in place.fields if k in known})


def channel_config(place, cfg):
  own = {**cfg.common, **dict(cfg.channels.get(place.channel, {}))}
  config_class = find("channels", place.channel).Config
  return configure(config_class, f"channel {place.channel}", **own)


class Block(nnx.Module):
  """x + mixer(norm(x)), then x + channel(norm(x)).

  Mixers in parallel are each normalised and averaged (Hymba, eq. 3,
  https://arxiv.org/abs/2411.13676). An aside block leaves x as it is, and has
  a = channel(norm(mixer(norm(x)))) W, W its place's own, added to the x that
  the next block's mixer reads (Zamba, eq. 6, https://arxiv.org/abs/2405.16712).
  Mixers that read the embedded tokens e get norm([x, e]), 2 D wide.
  """

  def __init__(self, place, cfg, *, layer, rngs):
    self.place, self.dropout = place, cfg.dropout
    configs = {name: mixer_config(place, cfg, name) for name in place.mixers}
    for field, _ in place.fields:
      if not any(hasattr(own, field) for own in configs.values()):
        raise ValueError(f"no mixer of {place.mixers} has a field {field!r}")
    wide = {own.embedding for own in configs.values()}
    if len(wide) > 1:
      raise ValueError(
        f"of {place.mixers} some read the embedded tokens and some do not"
      )
    (self.wide,) = wide
    self.norm = cfg.normaliser(cfg.dim * (1 + self.wide))
    for name, own in configs.items():
      mixer = find("mixers", name).Mixer(own, layer=layer, rngs=rngs)
      setattr(self, name, mixer)
      if len(place.mixers) > 1:
        setattr(self, f"{name}_norm", cfg.normaliser())
    if place.channel != "none":
      channels = find("channels", place.channel)
      own = channel_config(place, cfg)
      self.channel_norm = cfg.normaliser()
      self.channel = channels.Channel(own, layer=layer, rngs=rngs)

  def init_state(self, batch, length=None):
    state = {
      name: getattr(self, name).init_state(batch, length)
      for name in self.place.mixers
    }
    if self.place.channel != "none":
      state["channel"] = self.channel.init_state(batch, length)
    return state

  def __call__(
    self,
    x,
    reset,
    state,
    stream,
    key,
    aside=None,
    own=None,
    once=None,
    layer=None,
  ):
    """Returns x, or an aside block's a before W, state, stream and the channel
    mixer's aux.

    Args:
      aside: of the block before, where it is an aside one.
      own: the place's Own, or None.
      once: the model's Once, or None.
    """
    new, aux, place = {}, {}, self.place
    old = state if state is not None else {}
    read = x if aside is None else x + aside
    if self.wide:
      read = jnp.concatenate([read, stream["embedding"]], -1)
    u = self.norm(read)
    ys = []
    for name in place.mixers:
      mixer = getattr(self, name)
      with jax.named_scope("mixer"):
        given = {"stream": stream} if mixer.cfg.stream else {}
        if hasattr(once, name):
          given["shared"] = getattr(once, name)(layer)
        if hasattr(own, name):
          given["own"] = getattr(own, name)
        y, new[name], *after = mixer(u, reset, old.get(name), **given)
        if after:
          (stream,) = after
      ys.append(y)
    if len(ys) > 1:
      norms = [getattr(self, f"{name}_norm") for name in place.mixers]
      ys = [norm(y) for norm, y in zip(norms, ys, strict=True)]
    y = self.drop(sum(ys) / len(ys), key, 0)
    x = y if place.aside else x + y
    if place.channel != "none":
      with jax.named_scope("channel"):
        given = {"own": own.channel} if hasattr(own, "channel") else {}
        y, new["channel"], aux = self.channel(
          self.channel_norm(x), reset, old.get("channel"), **given
        )
      y = self.drop(y, key, 1)
      x = y if place.aside else x + y
    return x, new, stream, aux

  def drop(self, y, key, which):
    if key is None or not self.dropout:
      return y
    keep = jax.random.bernoulli(
      jax.random.fold_in(key, which), 1 - self.dropout, y.shape
    )
    return jnp.where(keep, y / (1 - self.dropout), 0)


class Own(nnx.Module):
  """What a place has to itself, be its block shared: the map of an aside one,
  and low-rank maps beside what is shared.

  These are made by files of mixers and channel mixers that export
  Own(cfg, rank, *, rngs); what it makes is given to their calls as `own`.
  """

  def __init__(self, place, cfg, *, rngs):
    if place.aside:
      self.out = Linear(cfg.dim, cfg.dim, dtype=cfg.dtype, rngs=rngs)
    for name, rank in place.own:
      if name in place.mixers:
        module, own = find("mixers", name), mixer_config(place, cfg, name)
      elif name == "channel" and place.channel != "none":
        module = find("channels", place.channel)
        own = channel_config(place, cfg)
      else:
        raise ValueError(
          f"own={dict(place.own)}: {name!r} is none of "
          f"{', '.join(place.mixers)}, nor the place's channel"
        )
      if not hasattr(module, "Own"):
        raise ValueError(
          f"own={dict(place.own)}: {module.__name__} has no Own, which would "
          "make maps of a place's own"
        )
      if rank < 1:
        raise ValueError(f"own={dict(place.own)}: ranks must be positive")
      setattr(self, name, module.Own(own, rank, rngs=rngs))


class Once(nnx.Module):
  """What files of mixers build once a model, by the mixer's name.

  Such a file exports Shared(cfg, *, rngs), a module. Called with a layer's
  number, it gives what that layer's mixer is called with as `shared`.
  """

  def __init__(self, places, cfg, *, rngs):
    for name in sorted({name for place in places for name in place.mixers}):
      module = find("mixers", name)
      if not hasattr(module, "Shared"):
        continue
      own = [
        mixer_config(place, cfg, name)
        for place in places
        if name in place.mixers
      ]

      def shapes(own, make=module.Shared):
        state = nnx.eval_shape(lambda: nnx.state(make(own, rngs=nnx.Rngs(0))))
        return jax.tree.map(jnp.shape, nnx.to_pure_dict(state))

      if any(shapes(other) != shapes(own[0]) for other in set(own[1:])):
        raise ValueError(
          f"places of {name} differ in a field on which what they share "
          f"depends: write it below mixers.{name}"
        )
      setattr(self, name, module.Shared(own[0], rngs=rngs))


class Stack(nnx.Module):
  """The blocks of one period; LM holds it n times over, on a leading axis."""

  def __init__(self, places, cfg, *, layer, rngs):
    self.places = places
    for i, place in enumerate(places):
      if not place.share:
        setattr(
          self, f"block_{i}", Block(place, cfg, layer=layer + i, rngs=rngs)
        )
      if place.aside or place.own:
        setattr(self, f"own_{i}", Own(place, cfg, rngs=rngs))

  def block(self, i, shared):
    share = self.places[i].share
    return shared[share] if share else getattr(self, f"block_{i}")

  def init_state(self, shared, batch, length):
    return {
      f"block_{i}": self.block(i, shared).init_state(batch, length)
      for i in range(len(self.places))
    }

  def __call__(self, x, stream, reset, state, key, shared, once, layer, run):
    new, aux = {}, {}
    for i, place in enumerate(self.places):
      name, own = f"block_{i}", getattr(self, f"own_{i}", None)
      y, new[name], stream, aux[name] = run(
        self.block(i, shared),
        x,
        reset,
        None if state is None else state[name],
        stream,
        None if key is None else jax.random.fold_in(key, i),
        stream["aside"] if place.after else None,
        own,
        once,
        layer + i,
      )
      if place.aside:
        with jax.named_scope("mixer"):
          stream = stream | {"aside": own.out(y)}
      else:
        x = y
    return x, stream, new, aux


def stacked(places, cfg, keys, layers) -> Stack:
  """A Stack with a leading axis on every array, one place a key."""

  def make(key, layer):
    return Stack(places, cfg, layer=layer, rngs=nnx.Rngs(key))

  return nnx.vmap(make)(keys, layers)
