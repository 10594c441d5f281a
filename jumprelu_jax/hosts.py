"""Several processes that run one program, each with devices of its own.

Every process runs the same commands. The mesh is over the devices of all;
files that are one for all are written by the first.
"""

from __future__ import annotations

from collections.abc import Callable
import time
from typing import TypeVar

import jax
from jax.experimental import multihost_utils

from jumprelu_jax import errors

PyTree = TypeVar('PyTree')

# A process that says nothing for as long is taken for dead, and all others end.
_HEARTBEAT_S = 30
# The first process evaluates what all have trained; the others wait at the end.
_SHUTDOWN_S = 24 * 3600
_POLL_S = 2.0


def start(spec: str) -> None:
  """Joins the other processes; before anything else asks JAX for devices.

  Args:
    spec: 'one' for a process alone; 'auto' for what the cluster's environment
      says (Cloud TPU, Slurm, Kubernetes, Open MPI); or ADDRESS:PORT,COUNT,INDEX
      of the first process, of how many there are, and of which this one is.

  Raises:
    errors.InputError: it is none of these, or the cluster says nothing.
  """
  if spec == 'one':
    return
  options = {
    'heartbeat_timeout_seconds': _HEARTBEAT_S,
    'shutdown_timeout_seconds': _SHUTDOWN_S,
  }
  if spec == 'auto':
    try:
      jax.distributed.initialize(**options)
    except ValueError as error:
      raise errors.InputError(
        f'--processes=auto: no cluster is known here ({error}); give '
        '--processes=ADDRESS:PORT,COUNT,INDEX.'
      ) from error
    return
  address, count, index = _parse(spec)
  jax.distributed.initialize(address, count, index, **options)


def is_first() -> bool:
  """True in the process that writes for all."""
  return jax.process_index() == 0


def wait_for(is_done: Callable[[], bool]) -> None:
  """Returns when the first process has done something, which all can see."""
  while not is_done():
    time.sleep(_POLL_S)


def meet(name: str) -> None:
  """Returns when all processes have come here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def fetch(tree: PyTree) -> PyTree:
  """Returns the arrays whole, on the host; to be called by all processes."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def _parse(spec):
  """Returns (address, count, index) of 'ADDRESS:PORT,COUNT,INDEX'."""
  words = spec.split(',')
  is_whole = len(words) == 3 and all(word.isdecimal() for word in words[1:])
  if not is_whole or ':' not in words[0] or int(words[2]) >= int(words[1]):
    raise errors.InputError(
      f"--processes={spec}: expected 'one', 'auto' or ADDRESS:PORT,COUNT,INDEX "
      'with INDEX from 0 to COUNT - 1, such as 10.0.0.1:8476,4,0.'
    )
  return words[0], int(words[1]), int(words[2])
