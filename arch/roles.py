"""What a variable of a model is, which decides its decay and its optimiser."""

from flax import nnx


class Matrix(nnx.Param):
  """A dense map, d_in x d_out in its last two axes: weight decay, Muon."""


class Embedding(nnx.Param):
  """A row per symbol."""


class Table(nnx.Param):
  """Rows of which a token chooses some by what it is: keys, values, neurons."""


class Vector(nnx.Param):
  """Acts elementwise: norm weights, biases, depthwise convolutions."""


class Gate(nnx.Param):
  """Sets a decay, a step size, a skip or a mixture, or is a map to one: never
  decayed towards zero."""


class Buffer(nnx.Variable):
  """Saved and restored, written by the step from `aux`; has no gradient."""


class Progress(Buffer):
  """The share of training that is done: the training step writes it."""


ROLES = (Matrix, Embedding, Table, Vector, Gate)
