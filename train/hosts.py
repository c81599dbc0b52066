"""Several processes, on one machine or on many, that train one run.

`start` joins them, before JAX touches a device. Process 0, the `first`, then
holds the folder's lock and writes and says all but what Orbax has each process
write; what it decides, and what goes wrong in any of them, all of them learn.
Each makes the same batches and gives its own devices their part.

With one process all of this is as if it were not there.
"""

import atexit
import faulthandler
import hashlib
import json
import os
import re
import signal
import socket
import threading

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.distributed import global_state
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from train import sharding, signals, sites

# the first is JAX's own
NAMES = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
LIMIT = 60  # seconds in which all processes must have come
PATIENCE = 20  # and for which one that ends waits for the others
DAY = 86_400_000  # milliseconds
ERRORS = {e.__name__: e for e in (ValueError, OSError)}
count = 1  # of the processes
said = 0  # how often they have told one another something


def start():
  """Joins the processes that SLURM, GKE, Cloud TPU or Open MPI started, as JAX
  finds them, or those of which JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID tell.

  Raises:
    ValueError: there are none, or not all of them came within LIMIT seconds.
  """
  global count
  lone = {sites.KAGGLE, sites.COLAB} & {*os.environ}
  # JAX would take Kaggle's for GKE's
  if lone or os.environ.get("TPU_PROCESS_ADDRESSES") == "local":
    raise ValueError(
      f"--distributed: this is one host ({sites.site()}), all of whose devices "
      "one process has: leave it out"
    )
  given, failed = told(), []

  def join():
    try:
      # beyond its own limit JAX ends the process, with a trace of C++
      jax.distributed.initialize(*given, initialization_timeout=10 * LIMIT)
    except Exception as error:  # whatever a cluster's detection raises
      failed.append(error)

  joining = threading.Thread(target=join, daemon=True)
  joining.start()
  joining.join(LIMIT)
  if joining.is_alive():
    atexit.register(os._exit, 1)  # JAX would wait, and say more
    raise ValueError(
      f"--distributed: not all processes came within {LIMIT} s to the "
      f"coordinator, process 0 at {global_state.coordinator_address}: see that "
      "each was started, and that its host reaches that address"
    )
  if failed:
    raise ValueError(
      f"--distributed: JAX finds no cluster ({failed[0]}): start it by SLURM, "
      f"GKE, Cloud TPU or Open MPI, or set {', '.join(NAMES)}"
    )
  # JAX has taken it for a service that is not used here
  signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
  atexit.register(leave)
  count = global_state.num_processes


def told() -> tuple:
  """Address, number and place of this process in the environment, if there.

  Raises:
    ValueError: they are no such three, or the port of process 0 is taken.
  """
  words = [os.environ.get(name, "") for name in NAMES]
  if not any(words[1:]):
    return ()  # with an address alone JAX finds the rest
  address, *numbers = words
  good = re.fullmatch(r".+:\d{1,5}", address)
  if not good or not all(word.isdecimal() for word in numbers):
    number = place = 0
  else:
    number, place = map(int, numbers)
  if place >= number:
    given = ", ".join(map("=".join, zip(NAMES, words, strict=True)))
    raise ValueError(
      f"{given}: give HOST:PORT of process 0, how many processes there are, "
      "and which one this is, from 0 on"
    )
  if place == 0:
    check_port(address)
  return address, number, place


def check_port(address: str):
  """ValueError where JAX would crash: it can't listen at that port."""
  port = int(address.rpartition(":")[2])
  try:
    socket.create_server(("", port)).close()
  except (OSError, OverflowError) as error:
    raise ValueError(
      f"{NAMES[0]}={address}: process 0 cannot listen there ({error}): name "
      "another port"
    ) from None


def leave():
  """Ends the process where JAX, at its end, would wait for others in vain."""
  nowhere = os.open(os.devnull, os.O_WRONLY)
  faulthandler.dump_traceback_later(PATIENCE, exit=True, file=nowhere)


def first() -> bool:
  """Whether this process is the one that writes and speaks."""
  return count == 1 or jax.process_index() == 0


def tell(text: str):
  """What this process has to say in this round."""
  global said
  said += 1
  global_state.client.key_value_set(key(jax.process_index()), text)


def heard(process: int) -> str:
  """What another says in it, for which this one waits."""
  return global_state.client.blocking_key_value_get(key(process), DAY)


def key(process: int) -> str:
  return f"lab/{said}/{process}"


def every(text: str) -> list[str]:
  """What each process says."""
  tell(text)
  return [heard(process) for process in range(count)]


def tried(call) -> tuple:
  """What a call answers, the error that it raises, and that one's words."""
  try:
    return call(), None, []
  except tuple(ERRORS.values()) as error:
    kind = next(k for k, e in ERRORS.items() if isinstance(error, e))
    return None, error, [kind, str(error)]


def together(call):
  """What call() answers in each process; all raise what it raises in any."""
  if count == 1:
    return call()
  answer, own, words = tried(call)
  for process, text in enumerate(every(json.dumps(words))):
    if own or text != "[]":
      kind, why = words or json.loads(text)
      raise own or ERRORS[kind](f"process {process}: {why}")
  return answer


def decided(call):
  """What call() answers, or raises, in process 0: what JSON can hold."""
  if count == 1:
    return call()
  answer, error, words = tried(call) if first() else (None, None, [])
  tell(json.dumps([answer, words]))
  if error:
    raise error
  answer, words = json.loads(heard(0))
  if words:
    raise ERRORS[words[0]](words[1])
  return answer


def same(what: str, text: str):
  """ValueError where that is not the same text in every process."""
  if count == 1:
    return
  found = every(hashlib.sha256(text.encode()).hexdigest()[:12])
  for process, other in enumerate(found):
    if other != found[0]:
      raise ValueError(
        f"process {process} has another {what} than process 0: hash {other}, "
        f"not {found[0]}; give all of them the same"
      )


def fetch(tree):
  """jax.device_get, also of what no one process has all of."""

  def whole(x):
    if x.is_fully_addressable or x.is_fully_replicated:
      return x
    return multihost_utils.process_allgather(x, tiled=True)

  return jax.device_get(tree if count == 1 else jax.tree.map(whole, tree))


def own(tree):
  """Arrays of one device such that JAX puts them on devices of all processes,
  which it does with those of the host alone."""
  return tree if count == 1 else jax.device_get(tree)


class Sharding(sharding.Sharding):
  """Places what every process has, the same in each, on devices of all."""

  @classmethod
  def fitting(cls, model, batch, replicates=0, devices=None):
    """Its own, which must be devices of every process.

    Raises:
      ValueError: they are not.
    """
    found = super().fitting(model, batch, replicates, devices)
    used = {device.process_index for device in found.mesh.devices.flat}
    if len(used) < count:
      raise ValueError(
        f"a batch of {batch} can be shared by {found.mesh.size // model} of "
        f"{jax.device_count() // model} copies of the model, which leaves "
        f"{count - len(used)} of {count} processes without a device: start "
        "fewer, or take a train.batch that the copies divide (over "
        "train.accumulate, where that is set)"
      )
    return found

  def _put(self, tree, specs):
    if count == 1:
      return super()._put(tree, specs)

    def put(x, spec):
      to = NamedSharding(self.mesh, spec)
      if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return jax.device_put(x, to)
      # jax.device_put would have all processes compare what they put
      x = np.asarray(x)
      return jax.make_array_from_callback(x.shape, to, x.__getitem__)

    return jax.tree.map(put, tree, specs)


class Stop:
  """What asks a run to stop, which all processes learn at one step.

  Each tells the others after every step what its own signals say, by a maximum
  over all devices, and reads what was told a step before, which is there by
  then. A run stops so at most two steps after a signal; one process by itself
  is told at once.

  Args:
    asked: the Signals of this process.
  """

  WORDS = ("", *(s.name for s in signals.BOTH), signals.LATE)

  def __init__(self, asked: signals.Signals):
    self.asked, self._name, self._told = asked, "", None
    if count > 1:
      mesh = Mesh(np.asarray(jax.devices()), ("device",))
      self._each = NamedSharding(mesh, P("device"))
      self._most = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, P()))

  @property
  def name(self) -> str:
    """Of what asked to stop; "" for nothing."""
    return self.asked.name if count == 1 else self._name

  def stepped(self):
    """Called by every process after every step."""
    if count == 1:
      return
    own = np.full(1, self.WORDS.index(self.asked.name), np.int32)
    shape = (jax.device_count(),)
    each = jax.make_array_from_callback(shape, self._each, lambda _: own)
    before, self._told = self._told, self._most(each)
    if before is not None:
      self._name = self.WORDS[int(before)]
