"""Two residual streams, which every sublayer reads from and writes to anew.

  u = sum_i a_i H_i,  H_i <- sum_j A_ji H_j + b_i f(norm(u))      i, j = 1, 2
  a = a' + s tanh(n W_a),  A = A' + s tanh(n W_A),  b = b' + s tanh(n W_b)
  n = norm(H_i), of each lane: its rows of A, and its a and b

Hyper-connections of expansion rate 2, Zhu et al. 2024,
https://arxiv.org/abs/2409.19606, eq. 2 and 6 to 10. Both lanes begin as the
embedded tokens, and their sum goes to the readout. As there a' is one lane, by
turns, A' the identity, b' 1, W 0 and s .01: the model starts as a plain one.

B batch  T time  D width
"""

import jax.numpy as jnp
from flax import nnx

from arch.layers import normalise
from arch.roles import Gate
from arch.wiring import residual

STREAMS = ("lane",)


class Block(residual.Block):
  def __init__(self, place, cfg, *, layer, rngs):
    super().__init__(place, cfg, layer=layer, rngs=rngs)
    self.layers, groups = cfg.layers, len(place.groups)
    for i in range(groups):
      at = layer * groups + i
      setattr(self, f"lanes_{i}", Connection(cfg.dim, at))

  def __call__(self, x, state, at):
    other = jnp.where(at.layer == 0, x, at.stream["lane"])
    both = jnp.stack([x, other], 2)  # B T 2 D
    both, state, aux = super().__call__(both, state, at)
    x, other = both[:, :, 0], both[:, :, 1]
    x = jnp.where(at.layer == self.layers - 1, x + other, x)
    return x, state, aux._replace(stream=aux.stream | {"lane": other})

  def read(self, x, i):
    return getattr(self, f"lanes_{i}").read(x)

  def add(self, x, y, i):
    return getattr(self, f"lanes_{i}").write(x, y)


class Connection(nnx.Module):
  """How a sublayer reads two lanes, B T 2 D -> B T D, and writes to them."""

  def __init__(self, dim, number):
    one = jnp.where(jnp.arange(2) == number % 2, 1.0, 0.0)
    self.static_read = Gate(one)
    self.static_mix = Gate(jnp.eye(2))
    self.static_write = Gate(jnp.ones(2))
    self.dynamic = Gate(jnp.zeros((dim, 4)))  # of a lane: a, its row of A, b
    self.scale = Gate(jnp.full(3, 0.01))

  def found(self, lanes):
    """a B T 2, A B T 2 2 and b B T 2 in float32."""
    n = normalise(lanes, 1e-6)
    more = jnp.tanh(jnp.einsum("btid,dk->btik", n, self.dynamic[...]))
    s = self.scale[...]
    a = self.static_read[...][None, None] + s[0] * more[..., 0]
    A = self.static_mix[...][None, None] + s[1] * more[..., 1:3]
    b = self.static_write[...][None, None] + s[2] * more[..., 3]
    return a, A, b

  def read(self, lanes):
    a, _, _ = self.found(lanes)
    return jnp.sum(a.astype(lanes.dtype)[..., None] * lanes, 2)

  def write(self, lanes, y):
    _, A, b = (t.astype(lanes.dtype) for t in self.found(lanes))
    mixed = sum(A[:, :, j, :, None] * lanes[:, :, j, None] for j in range(2))
    return mixed + b[..., None] * y[:, :, None]
