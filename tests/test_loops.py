"""Loops over shared blocks, and how blocks join the stream."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import batch, build, close, config, held, noisy, tokens

import arch
from arch import arrays, registry
from arch.pattern import Loop, places
from train.step import Step

EVERYTHING = dict(times=3, first=1, norms=True, scales=True, rank=2)
FORMS = {
  "loop": dict(loop=EVERYTHING | dict(inject=True)),
  "immediate": dict(loop=dict(times=2, last=1, order="immediate")),
  "lanes": dict(wiring="lanes", loop=dict(times=2, first=1)),
  "first": dict(wiring="first"),
  "values": dict(mixer="gla", wiring="values", loop=dict(times=2, rank=1)),
}
VALUES = [
  name
  for name in registry.names("mixers")
  if registry.find("mixers", name).Config.values
]


def model(mixer="mingru", **fields):
  c = config(mixer)
  c.model.channel, c.model.channels.swiglu = "swiglu", dict(width=7)
  c.model.update(fields)
  return c


def names(**fields):
  found = places(("a", "b", "c"), 4, "none", loop=Loop(**fields))
  return ["".join(place.mixers) for place in found], found


def test_the_order_of_a_loop():
  assert names()[0] == list("abca")
  assert names(times=2)[0] == list("abcaabca")
  assert names(times=2, order="immediate")[0] == list("aabbccaa")
  order, found = names(times=3, first=1, last=2)
  assert order == list("abbbca")
  assert [p.visit for p in found] == [0] * 6  # counted once all is resolved
  assert [p.share for p in found] == ["", *["loop_1_0"] * 3, "", ""]


def test_loops_of_a_pattern_come_again_with_weights_of_their_own():
  loop = {"loop": ("b", {"mixer": "c", "channel": "none"}), "times": 2}
  found = places(("a", loop), 6, "swiglu")
  assert ["".join(p.mixers) for p in found] == list("abcbcabcbc")
  shares = [p.share for p in found]
  assert shares[1:3] == shares[3:5] and shares[6:8] == shares[8:10]
  assert len({*shares}) == 5
  assert {p.channel for p in found if p.mixers == ("c",)} == {"none"}


def test_one_pass_is_the_plain_model():
  c = model()
  plain = build(c)
  c.model.loop = dict(times=1, norms=True, scales=True, rank=3, inject=True)
  looped = build(c)
  jax.tree.map(
    np.testing.assert_array_equal, arrays.pure(looped), arrays.pure(plain)
  )
  text = tokens(c)
  run = jax.jit(lambda m: m(text)[0])
  assert np.array_equal(run(looped), run(plain))


def test_plain_blocks_add_what_they_answer(record_property):
  c = model("mingru", depth=2)
  made = noisy(build(c))
  x = jax.random.normal(jax.random.key(0), (2, 5, c.model.dim))
  y = x
  for i in range(2):
    block = jax.tree.map(lambda a, i=i: a[i], made.trunk.stack_0).block_0
    y = y + block.mingru(block.norm(y), None, None)[0]
    y = y + block.channel(block.channel_norm(y), None, None)[0]
  source, ours = "x + f(norm(x)), spelled out", made.mix(x)[0]
  held(record_property, "wiring", "residual", source, ours, made.norm(y))


def test_passes_are_blocks_with_equal_weights():
  """Values, and the sum of their gradients."""
  c = model("mingru", depth=2, loop=dict(times=2, first=1))
  looped, text = noisy(build(c)), tokens(c)
  c.model.loop, c.model.depth = dict(times=1), 3
  apart = arch.abstract(c.model)
  own, _ = arrays.pure(looped)
  trunk = own["trunk"]
  shared = trunk["shared_loop_1_0"]
  first = jax.tree.map(lambda a: a[0], trunk["stack_0"]["block_0"])
  blocks = jax.tree.map(lambda *a: jnp.stack(a), first, shared, shared)
  copied = own | {"trunk": {"stack_0": {"block_0": blocks}}}

  def graded(like):
    def loss(params):
      return jnp.sum(jnp.sin(arrays.fill(like, params, {})(text)[0]))

    return jax.jit(jax.value_and_grad(loss))

  value, gradient = graded(looped)(own)
  exact, each = graded(apart)(copied)
  close(value, exact, 1e-5)
  two = jax.tree.map(lambda a: a[1] + a[2], each["trunk"]["stack_0"]["block_0"])
  close(gradient["trunk"]["shared_loop_1_0"], two, 1e-5)


def test_a_difference_is_of_its_pass_alone():
  c = model("attention", depth=1, loop=dict(times=2, rank=2))
  model_, text = noisy(build(c)), tokens(c)
  own, _ = arrays.pure(model_)
  trunk = own["trunk"]
  differences = trunk["stack_0"]["own_0"]
  c.model.loop, c.model.depth = dict(times=1), 2
  apart = arch.abstract(c.model)
  maps = model_.trunk.stack_0.own_0.maps

  def block(i):
    made = jax.tree.map(jnp.copy, trunk["shared_loop_0_0"])
    for j, path in enumerate(maps):
      node = made
      for name in path:
        node = node[name]
      low = jax.tree.map(lambda a: a[i], differences[f"difference_{j}"])
      node["weight"] += low["A"] @ low["B"]
    return made

  every = {"qkv", "out_proj", "gate", "up", "down"}
  assert {path[-1] for path in maps} == every
  blocks = jax.tree.map(lambda *a: jnp.stack(a), block(0), block(1))
  copied = own | {"trunk": {"stack_0": {"block_0": blocks}}}
  run = jax.jit(lambda m: m(text)[0])
  close(run(model_), run(arrays.fill(apart, copied, {})), 1e-5)


@pytest.mark.parametrize("form", sorted(FORMS))
def test_whatever_the_form_a_text_may_be_split(form):
  """Token by token is one call, nothing crosses a reset, all is connected."""
  c = model(**FORMS[form])
  made = noisy(build(c))
  graph, leaves = arrays.split(made)

  @jax.jit
  def call(text, reset, state):
    with jax.numpy_dtype_promotion("strict"):
      return arrays.join(graph, leaves)(text, reset, state)

  text = tokens(c)
  other = text.at[1, :4].set((text[0, :4] + 1) % 17).at[1, 4:].set(text[0, 4:])
  text = other
  reset = jnp.zeros(text.shape, bool).at[:, 4].set(True)
  whole, last = call(text, reset, made.init_state(2))
  close(whole[0, 4:], whole[1, 4:], 1e-6)
  assert np.all(whole[0, 3] != whole[1, 3])
  state, steps = made.init_state(2), []
  for t in range(text.shape[1]):
    now = slice(t, t + 1)
    y, state = call(text[:, now], reset[:, now], state)
    steps.append(y)
  close(jnp.concatenate(steps, 1), whole)
  close(state, last)

  @jax.jit
  @jax.grad
  def gradient(params):
    like = arch.abstract(c.model)
    return arrays.fill(like, params, {}).loss(
      text, text % 17, jnp.ones(text.shape), reset
    )[0]

  params, _ = arrays.pure(made)
  for path, g in jax.tree_util.tree_leaves_with_path(gradient(params)):
    where = jax.tree_util.keystr(path)
    assert np.all(np.isfinite(g)) and np.any(g), where


def test_depth_that_initialisation_knows_is_that_of_passes():
  looped = model("mingru", depth=2, loop=dict(times=3))
  deep = model("mingru", depth=6)
  downs = [
    build(c).trunk.shared_loop_0_0.channel.down.weight[...]
    if c is looped
    else build(c).trunk.stack_0.block_0.channel.down.weight[...][0]
    for c in (looped, deep)
  ]
  assert abs(np.std(downs[0]) / np.std(downs[1]) - 1) < 0.2


def test_a_block_mixes_the_embedded_tokens_in(record_property):
  c = model("mingru", depth=2, wiring="first")
  c.model.channel = "none"
  made = noisy(build(c), 0.3)
  e = jax.random.normal(jax.random.key(0), (2, 5, c.model.dim))
  x = e
  for i in range(2):
    block = jax.tree.map(lambda a, i=i: a[i], made.trunk.stack_0).block_0
    x = block.keep[...][None, None] * x + block.mix[...][None, None] * e
    x = x + block.mingru(block.norm(x), None, None)[0]
  source = "modded-nanogpt's x0 by its equation"
  ours = made.mix(e)[0]
  held(record_property, "wiring", "first", source, ours, made.norm(x))


def test_values_have_the_embedded_tokens_added(record_property):
  c = model("shortconv", depth=2, wiring="values")
  c.model.channel = "none"
  made = noisy(build(c), 0.3)
  e = jax.random.normal(jax.random.key(0), (2, 5, c.model.dim))
  x = e
  for i in range(2):
    block = jax.tree.map(lambda a, i=i: a[i], made.trunk.stack_0).block_0
    mixer, n = block.shortconv, block.norm(x)
    b, c, v = mixer.in_proj(n)
    gate = 2 / (1 + jnp.exp(-n[..., :32] @ block.gate.weight[...]))
    unit = e / jnp.sqrt(jnp.mean(e**2, -1, keepdims=True) + 1e-6)
    v += gate * (unit @ block.again.weight[...])
    y = mixer.conv(b * v, None, mixer.conv.init_state(2))[0]
    x = x + mixer.out_proj(c * y)
  source = "NanoGPT Slowrun's projections of x0, by their equation"
  ours = made.mix(e)[0]
  held(record_property, "wiring", "values", source, ours, made.norm(x))


@pytest.mark.parametrize("name", VALUES)
def test_without_values_a_mixer_answers_nothing(name):
  """So that they are what it names, all of them and no others."""
  trunk = arch.abstract(config(name).model).trunk
  part = trunk.places[0].parts[0]
  made = noisy(part.make(layer=jnp.int32(0), rngs=nnx.Rngs(0)))
  for path, node in nnx.iter_graph(made):
    if isinstance(node, nnx.Param) and path[-1].endswith("bias"):
      node[...] = jnp.zeros_like(node[...])
  u = jax.random.normal(jax.random.key(0), (1, 5, part.width))
  linear, first, H, V = part.cfg.values
  reads = dict.fromkeys(part.cfg.reads, jnp.zeros(H * V))
  last = first + H * V
  weight = getattr(made, linear).weight[...]

  @jax.jit
  def answer(weight):
    own = nnx.clone(made)
    getattr(own, linear).weight[...] = weight
    return jnp.max(jnp.abs(own(u, None, None, **reads)[0]))

  assert last <= weight.shape[1]
  assert answer(weight.at[:, first:last].set(0)) == 0
  for kept in (first, last - 1):
    without = weight.at[:, first:kept].set(0).at[:, kept + 1 : last].set(0)
    assert answer(without) > 0


def test_an_injected_pass_begins_with_the_mean(record_property):
  c = model("mingru", depth=1, loop=dict(times=2, inject=True))
  c.model.channel = "none"
  made = build(c)
  x = jax.random.normal(jax.random.key(0), (2, 5, c.model.dim))
  block = made.trunk.shared_loop_0_0

  def add(x):
    return x + block.mingru(block.norm(x), None, None)[0]

  slow = made.norm(add((add(x) + x) / 2))
  source, ours = "2604.12946 by its equation", made.mix(x)[0]
  held(record_property, "wiring", "inject", source, ours, slow)


def test_lanes_are_hyper_connections(record_property):
  """From a plain model, to a loop over the equations with other weights."""
  c = model("mingru", depth=2)
  plain = build(c)
  c.model.wiring = "lanes"
  made = build(c)
  x = jax.random.normal(jax.random.key(0), (2, 5, c.model.dim))
  run = jax.jit(lambda m: m.mix(x)[0])
  close(run(made), run(plain), 1e-5)
  made = noisy(made, 0.3)

  def slow(made):
    H = [x, x]
    for layer in range(2):
      block = jax.tree.map(lambda a, i=layer: a[i], made.trunk.stack_0).block_0
      for i, (norm, f) in enumerate(
        ((block.norm, block.mingru), (block.channel_norm, block.channel))
      ):
        lanes = getattr(block, f"lanes_{i}")
        s = lanes.scale[...]
        n = [h / jnp.sqrt(jnp.mean(h * h, -1, keepdims=True) + 1e-6) for h in H]
        t = [jnp.tanh(a @ lanes.dynamic[...]) for a in n]
        a = [lanes.static_read[...][j] + s[0] * t[j][..., :1] for j in (0, 1)]
        u = a[0] * H[0] + a[1] * H[1]
        y = f(norm(u), None, None)[0]
        A = [
          lanes.static_mix[...][j][None, None] + s[1] * t[j][..., 1:3]
          for j in (0, 1)
        ]
        b = [lanes.static_write[...][j] + s[2] * t[j][..., 3:] for j in (0, 1)]
        H = [
          A[0][..., k : k + 1] * H[0] + A[1][..., k : k + 1] * H[1] + b[k] * y
          for k in (0, 1)
        ]
    return made.norm(H[0] + H[1])

  source = "2409.19606, eq. 2 and 6 to 10, by its equations"
  ours, theirs = run(made), jax.jit(slow)(made)
  held(record_property, "wiring", "lanes", source, ours, theirs)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(loop=dict(times=0)), "loop: times=0 must be at least 1"),
    (dict(loop=dict(rank=-1)), "loop: rank=-1 must be at least 0"),
    (dict(loop=dict(order="both")), "unknown order='both'.*cyclic, immediate"),
    (dict(loop=dict(time=2)), "loop has no field 'time'.*did you mean 'times'"),
    (dict(loop=dict(times=2, first=2, last=1)), "leave no block of depth=3"),
    (
      dict(loop=dict(times=2, inject=True, order="immediate")),
      "inject=True wants order='cyclic'",
    ),
    (
      dict(loop=dict(times=2, inject=True), wiring="lanes"),
      "inject=True wants a first block of wiring='residual', not 'lanes'",
    ),
    (dict(wiring="values"), "mingru has no values to which.*Known: attention"),
    (dict(wiring="lane"), "unknown wiring 'lane'.*did you mean 'lanes'"),
    (
      dict(pattern=({"loop": ("mingru", "mingru"), "times": 2},)),
      "depth=3 cuts a loop of 2 blocks",
    ),
    (
      dict(pattern=({"loop": ("mingru",), "first": 1},)),
      "a pattern's loop has no 'first'",
    ),
    (dict(pattern=({"loop": "mingru"},)), "loop needs entries: 'mingru'"),
    (
      dict(pattern=({"mixer": "mingru", "share": "a"},), loop=dict(times=2)),
      "a block of a loop cannot name a share",
    ),
  ],
)
def test_what_cannot_be_a_loop_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    arch.abstract(model("mingru", **fields).model)


LATE = dict(times=3, first=1, last=1, start=0.5)


def plain_form(tree):
  """Arrays of LATE's first pass as those of three blocks in a stack."""
  trunk = dict(tree["trunk"])
  trunk.pop("progress", None)
  first, last = (trunk.pop(f"stack_{i}")["block_0"] for i in (0, 2))
  middle = jax.tree.map(lambda a: a[None], trunk.pop("shared_loop_1_0"))
  assert not trunk
  blocks = (first, middle, last)
  stacked = jax.tree.map(lambda *a: jnp.concatenate(a), *blocks)
  return tree | {"trunk": {"stack_0": {"block_0": stacked}}}


def at(buffers, progress):
  own = buffers["trunk"] | {"progress": jnp.float32(progress)}
  return buffers | {"trunk": own}


@pytest.mark.parametrize("channel", ["swiglu", "relu_router"])
def test_before_its_start_a_loop_is_its_first_pass(channel):
  """Values, gradients, statistics and proposed buffers."""
  c = model("mingru", depth=3, loop=LATE, channel=channel)
  c.model.channels.relu_router = dict(experts=4, top=1, width=5)
  made, given = noisy(build(c)), batch(c)
  c.model.loop.start = 0.0
  looped = arch.abstract(c.model)
  c.model.loop.times = 1
  plain = arch.abstract(c.model)
  params, buffers = arrays.pure(made)

  def found(like, params, buffers):
    def loss(params):
      own = arrays.fill(like, params, buffers)
      value, aux = own.loss(**given)
      return value + aux.loss, aux

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

  def same(one, other):
    jax.tree.map(lambda a, b: close(a, b, 1e-5), one, other)

  (value, aux), gradient = found(made, params, at(buffers, 0.4))
  own = (plain_form(t) if channel != "swiglu" else {} for t in (buffers,))
  (exact, other), slope = found(plain, plain_form(params), *own)
  same((value, aux.statistics), (exact, other.statistics))
  same(plain_form(gradient), slope)
  if channel != "swiglu":
    same(plain_form(aux.next), other.next)

  without = buffers | {"trunk": dict(buffers["trunk"])}
  del without["trunk"]["progress"]
  same(found(made, params, at(buffers, 0.5)), found(looped, params, without))


@pytest.mark.parametrize("progress", [0.0, 0.5])
def test_a_late_loop_carries_its_state(progress):
  c = model("attention", depth=3, loop=LATE | dict(norms=True, rank=2))
  made, text = noisy(build(c)), tokens(c)
  made.trunk.progress[...] = jnp.float32(progress)
  whole, _ = made(text)
  state, parts = made.init_state(*text.shape), []
  for cut in (text[:, :1], text[:, 1:6], text[:, 6:]):
    part, state = made(cut, state=state)
    parts.append(part)
  close(jnp.concatenate(parts, 1), whole, 1e-5)


def test_training_starts_a_loop():
  """One compiled step, replicates as well; what later passes have to
  themselves moves from there on."""
  c = model("mingru", depth=3, loop=LATE | dict(scales=True))
  c.train.update(steps=4, warmup=0, decay=0.0, batch=2)
  step = Step(c)
  given = batch(c)
  state, others = step.init(0, 0.01), step.init(*np.array([[0, 1], [0.01] * 2]))

  def scale(state):
    return state["params"]["trunk"]["stack_1"]["own_0"]["scale"]

  for i in range(4):
    state, _ = step.train(state, given)
    others, _ = step.train(others, given)
    assert state["buffers"]["trunk"]["progress"] == (i + 1) / 4
    assert (np.asarray(scale(state)) == 1).all() == (i < 2)
    close(scale(others)[0], scale(state), 1e-5)
  assert step.train._cache_size() == 2  # alone and together


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(loop=LATE | dict(start=1.0)), "start=1.0 must be a share"),
    (dict(loop=LATE | dict(last=0), wiring="lanes"), "loop.last=1"),
    (dict(loop=LATE, wiring="aside"), "cannot have a block aside"),
  ],
)
def test_a_start_that_a_loop_cannot_have(fields, message):
  c = model("mingru", depth=3, **fields)
  with pytest.raises(ValueError, match=message):
    build(c)


@pytest.mark.parametrize(
  ("mixer", "wiring"), [("mingru", "first"), ("gla", "values")]
)
def test_a_late_last_block_may_read_the_embedding(mixer, wiring):
  c = model(mixer, depth=2, wiring=wiring, loop=dict(times=2, start=0.5))
  made, text = noisy(build(c)), tokens(c)
  params, buffers = arrays.pure(made)
  c.model.loop.times = 1
  trunk = params["trunk"]
  blocks = [trunk[f"shared_loop_0_{i}"] for i in range(2)]
  stack = {"block_0": jax.tree.map(lambda *a: jnp.stack(a), *blocks)}
  plain = arrays.fill(
    arch.abstract(c.model), params | {"trunk": {"stack_0": stack}}, {}
  )
  run = jax.jit(lambda m: m(text)[0])
  early = arrays.fill(made, params, at(buffers, 0.4))
  close(run(early), run(plain), 1e-5)
  late = arrays.fill(made, params, at(buffers, 0.5))
  assert jnp.max(jnp.abs(run(late) - run(plain))) > 1e-2


def test_a_difference_is_counted_as_its_map_is():
  made = build(model(**FORMS["values"]))
  own, groups = made.trunk.stack_0.own_0, {}
  for i, path in enumerate(own.maps):
    node = made.trunk.shared["loop_0_0"]
    for name in path:
      node = getattr(node, name)
    groups[path] = node.weight.get_metadata()["group"]
    _, state = nnx.split(getattr(own, f"difference_{i}"))
    found = {p.get_metadata()["group"] for _, p in nnx.to_flat_state(state)}
    assert found == {groups[path]}
  assert groups["again",] == groups["gate",] == "mixer"
  assert "channel" in groups.values()
