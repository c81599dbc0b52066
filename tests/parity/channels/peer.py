"""peer = PEER-pytorch's PEER, whose scores compete as in the paper."""

from PEER_pytorch import PEER

from arch.channels import peer as ours
from parity import Case

SOURCE = "PEER-pytorch PEER (no norm of queries)"
CASES = [dict(length=19, keys=5, heads=3, top=4)]
# none is published; the package's own is the default of torch's Embedding
START = []
D, WIDTH = 12, 4


def queries(W, heads):
  """D x (halves, heads, width) as D x (heads, halves, width)."""
  parts = W.reshape(-1, 2, heads, WIDTH).swapaxes(1, 2)
  return parts.reshape(len(W), -1)


def case(length, keys, heads, top):
  cfg = ours.Config(
    dim=D,
    depth=1,
    length=length,
    keys=keys,
    heads=heads,
    top=top,
    width=WIDTH,
    query_norm=False,
  )

  def weights(t):
    query = queries(t["to_queries.0.weight"].T, heads)
    return {
      "keys": {
        "query": {"weight": query},
        "keys": t["keys"].swapaxes(1, 2),
      },
      "u": t["weight_down_embed.weight"],
      "v": t["weight_up_embed.weight"],
    }

  theirs = PEER(
    D,
    heads=heads,
    num_experts=keys**2,
    num_experts_per_head=top,
    dim_key=WIDTH,
    non_competing_scores=False,
  )
  return Case(ours.Channel, cfg, theirs, weights, length=length)
