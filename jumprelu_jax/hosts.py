"""Several processes that run one program, each with devices of its own.

Every process runs the same commands. The mesh is over the devices of all;
files that are one for all are written by the first. Processes that would not
compute the same are told so before the first collective (`agree`): a collective
that they enter differently hangs, or silently gives wrong numbers.

Processes exchange these few words through the key-value store of JAX's
coordination service, which has no public interface: the public
`multihost_utils` exchange by collectives, in which a process that works for
longer than the others (a harvest, an evaluation) lets them run into a time-out.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import functools
import importlib.metadata
import itertools
import json
import os
import pathlib
import sys
import time
from typing import Any
from typing import TypeVar

import jax
from jax._src import distributed  # for its client alone; see above
from jax.experimental import multihost_utils

from jumprelu_jax import errors
from jumprelu_jax import seals

PyTree = TypeVar('PyTree')
Value = TypeVar('Value')

# A process that says nothing for as long is taken for dead, and all others end.
_HEARTBEAT_S = 30
_POLL_S = 0.1
# For a file that the first process has written, or for the last words of a
# process to be read by the others.
_PATIENCE_S = 8.0
_LEFT = 'jumprelu_jax/left'
_PACKAGES = ('jax', 'jaxlib', 'numpy', 'optax', 'orbax-checkpoint')
_OPTIONS = (
  'jax_enable_x64',
  'jax_default_matmul_precision',
  'jax_default_prng_impl',
  'jax_threefry_partitionable',
)
# Of each name, the calls so far: the same in all processes.
_calls = collections.defaultdict(itertools.count)


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
  options = {'heartbeat_timeout_seconds': _HEARTBEAT_S}
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


def are_several() -> bool:
  """True if this process is one of several; asks for no device."""
  return (distributed.global_state.num_processes or 1) > 1


def is_first() -> bool:
  """True in the process that writes for all."""
  return jax.process_index() == 0


def agree(name: str, gather_facts: Callable[[], Mapping[str, Any]]) -> None:
  """Checks that all processes have the same facts; to be called by all.

  Args:
    name: of the occasion.
    gather_facts: returns JSON by name; called if there are several processes.

  Raises:
    errors.InputError: they differ; says in which facts, and who has which.
  """
  if not are_several():
    return
  mine = {key: json.dumps(value) for key, value in gather_facts().items()}
  found = [json.loads(text) for text in _gather(name, json.dumps(mine))]
  differing = [
    f'{key}: {_by_value([of_one.get(key, "nothing") for of_one in found])}'
    for key in sorted(set().union(*found))
    if len({of_one.get(key) for of_one in found}) > 1
  ]
  if differing:
    raise errors.InputError(
      f'the processes do not run the same: {"; ".join(differing)}. Give all of '
      'them the same command, with the same packages and source files.'
    )


@functools.cache
def software() -> dict[str, str]:
  """Returns what decides a run's numbers beside its config, for `agree`.

  Versions of packages, options of JAX and XLA, and a checksum of each source
  file of this package.
  """
  package = pathlib.Path(__file__).parent
  return {
    **{name: importlib.metadata.version(name) for name in _PACKAGES},
    **{name: str(getattr(jax.config, name, '')) for name in _OPTIONS},
    'XLA_FLAGS': os.environ.get('XLA_FLAGS', ''),
    **{
      f'{package.name}/{path.relative_to(package)}': seals.digest(path)[:8]
      for path in sorted(package.rglob('*.py'))
    },
  }


def from_first(name: str, make: Callable[[], Value]) -> Value:
  """Returns what the first process makes; to be called by all.

  The others wait for it, however long it takes.

  Args:
    name: of the value.
    make: called in the first process only; returns JSON.

  Raises:
    errors.InputError: another process has left.
  """
  if not are_several():
    return make()
  key = f'jumprelu_jax/{name}/{next(_calls[name])}'
  if is_first():
    value = make()
    _client().key_value_set(f'{key}/0', json.dumps(value))
    return value
  return json.loads(_wait_for(key, 1)[0])


def meet(name: str) -> None:
  """Returns when all processes have come here.

  Raises:
    errors.InputError: another process has left.
  """
  if are_several():
    _gather(name, '')


def check_visible(path: pathlib.Path, is_there: Callable[[], bool]) -> None:
  """Waits a moment for what the first process has written.

  Args:
    path: where it is.
    is_there: True once this process sees it.

  Raises:
    errors.InputError: this process does not see it.
  """
  deadline = time.monotonic() + _PATIENCE_S
  while are_several() and not is_there():
    if time.monotonic() > deadline:
      raise errors.InputError(
        f'{path}, written by the first process, is not seen by process '
        f'{jax.process_index()}; give a folder that all hosts share.'
      )
    time.sleep(_POLL_S)


def fetch(tree: PyTree) -> PyTree:
  """Returns the arrays whole, on the host; to be called by all processes."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  meet('fetch')  # collectives have a time-out, and the first process may write
  return multihost_utils.process_allgather(tree, tiled=True)


def leave(reason: str, code: int) -> None:
  """Tells the other processes that this one is about to end with an error.

  Ends the process itself if they do not leave as well: they may be in a
  collective, which waits for this one.

  Args:
    reason: is shown by the others.
    code: of the exit.
  """
  if not are_several():
    return
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    index = distributed.global_state.process_id
    reason = '' if departure() else reason  # that one is the cause
    _client().key_value_set(f'{_LEFT}/{index}', reason, allow_overwrite=True)
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
      if len(_read(_LEFT)) == distributed.global_state.num_processes:
        return
      time.sleep(_POLL_S)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def departure() -> str:
  """Returns which other process has left and why; '' if none has."""
  if not are_several():
    return ''
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    for index, reason in sorted(_read(_LEFT).items()):
      if reason and index != distributed.global_state.process_id:
        return f'process {index} has ended: {reason}'
  return ''


def _client():
  return distributed.global_state.client


def _read(key):
  """Returns what processes have set under a key, by their index."""
  found = _client().key_value_dir_get(f'{key}/')
  return {int(name.rpartition('/')[2]): value for name, value in found}


def _gather(name, value):
  """Returns what each process gives, in their order."""
  state = distributed.global_state
  key = f'jumprelu_jax/{name}/{next(_calls[name])}'
  _client().key_value_set(f'{key}/{state.process_id}', value)
  return _wait_for(key, state.num_processes)


def _wait_for(key, count):
  """Returns the values under a key when there are as many, in order."""
  while len(found := _read(key)) < count:
    if reason := departure():
      raise errors.InputError(reason)
    time.sleep(_POLL_S)
  return [found[index] for index in sorted(found)]


def _by_value(values):
  """Returns 'x in process 0, y in processes 1, 2'."""
  holders = {}
  for index, value in enumerate(values):
    holders.setdefault(value, []).append(str(index))
  return ', '.join(
    f'{value} in process{"es" if len(indices) > 1 else ""} {", ".join(indices)}'
    for value, indices in holders.items()
  )


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
