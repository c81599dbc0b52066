"""What codes of symbols are made of, beside its formula."""

import numpy as np
import scipy.sparse
from models import close

from arch import quantiser


def test_informative_pairs_are_those_of_the_formula():
  """Also where a pair is rarer than chance, and a symbol is never there."""
  counts = np.array([[0, 6, 1], [4, 1, 0], [0, 0, 0]], float)
  left, right = counts.sum(1, keepdims=True), counts.sum(0, keepdims=True)
  chance = left * right / counts.sum()
  there = counts > 0
  exact = np.zeros((3, 3))
  exact[there] = np.maximum(0, np.log(counts[there] / chance[there]))
  assert (exact[there] == 0).any() and (exact > 0).any()
  found = quantiser.informative(scipy.sparse.csr_array(counts))
  close(found.toarray(), exact)
