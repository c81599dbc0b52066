"""memory = product-key-memory's PKM, which has no gate."""

from product_key_memory import PKM

from arch.channels import memory as ours
from parity import Case
from parity.channels.peer import WIDTH, D, queries

SOURCE = "product-key-memory PKM (layer norm of queries, not gated)"
CASES = [dict(length=19, keys=5, heads=3, top=4)]
# Memory+'s values are normal numbers of deviation dim^-.5, as here and in the
# package; its keys are uniform
START = []


def case(length, keys, heads, top):
  cfg = ours.Config(
    dim=D,
    depth=1,
    length=length,
    keys=keys,
    heads=heads,
    top=top,
    width=WIDTH,
    gated=False,
  )

  def weights(t):
    query = queries(t["to_queries.weight"].T, heads)
    return {
      "keys": {
        "query": {"weight": query},
        "norm": {"weight": t["norm.weight"], "bias": t["norm.bias"]},
        "keys": t["keys"].swapaxes(1, 2),
      },
      "v": t["values.weight"],
    }

  theirs = PKM(D, heads=heads, num_keys=keys, topk=top, dim_head=WIDTH)
  return Case(ours.Channel, cfg, theirs, weights, length=length)
