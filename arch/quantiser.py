"""Codes of symbols by what stands beside them in a text, on the host.

  P_ab = max(0, log(n_ab n / (n_a n_b)))      n_ab: how often a b stands there
  [P, P^T] ~ U S W^T,  of rank r;  c_i(a): k-means of K on piece i of U sqrt(S)

Positive pointwise mutual information and its singular vectors, as Levy et al.
2015 (TACL 3, sec. 2 and 3.3) weigh them; the product quantiser of Jegou et al.
2011 (PAMI 33, sec. II). Piece i has every M-th singular vector from i on, so
that none has only weak ones.
"""

import warnings

import numpy as np
import scipy.cluster.vq
import scipy.sparse
import scipy.sparse.linalg

RANK = 8  # numbers of a piece


def pairs(symbols, first, size: int):
  """How often b follows a in documents, whose first symbols are marked; sparse
  size size."""
  inside = ~np.asarray(first[1:], bool)
  a, b = (np.asarray(s, np.int64)[inside] for s in (symbols[:-1], symbols[1:]))
  ones = np.ones(len(a))
  return scipy.sparse.coo_array((ones, (a, b)), (size, size)).tocsr()


def informative(counts):
  """P of sparse counts."""
  found = counts.tocoo()
  a, b = found.row, found.col
  total = found.data.sum()
  left, right = (np.asarray(counts.sum(axis)).ravel() for axis in (1, 0))
  bits = np.log(found.data * total / (left[a] * right[b]))
  kept = np.maximum(bits, 0)
  return scipy.sparse.coo_array((kept, (a, b)), counts.shape).tocsr()


def codes(counts, M: int, K: int, seed: int = 0):
  """Codes V M int32 of V symbols, of their counts V V.

  Raises:
    ValueError: fewer symbols than codes, or no more than pieces, or none that
      follows another.
  """
  V = counts.shape[0]
  if not counts.sum():
    raise ValueError("a text in which no symbol follows another has no codes")
  if V < max(K, M + 1):
    raise ValueError(f"{V} symbols are too few for {K} codes of {M} pieces")
  P = informative(counts)
  both = scipy.sparse.hstack([P, P.T]).tocsr()
  rank = min(RANK * M, V - 1)
  rng = np.random.default_rng(seed)
  start = rng.standard_normal(V)
  U, S, _ = scipy.sparse.linalg.svds(both, rank, v0=start)
  vectors = (U * np.sqrt(S))[:, np.argsort(-S)]

  def grouped(piece):
    with warnings.catch_warnings():  # groups that nothing is in are none's
      warnings.filterwarnings("ignore", "One of the clusters is empty")
      return scipy.cluster.vq.kmeans2(piece, K, minit="++", seed=rng)[1]

  found = [grouped(vectors[:, i::M]) for i in range(M)]
  return np.stack(found, -1).astype(np.int32)
