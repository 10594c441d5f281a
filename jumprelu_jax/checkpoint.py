"""Checkpoints of a pytree of arrays, saved and restored by Orbax.

A save is copied off the devices, then written by threads while training goes
on, beside its place, sealed (`seals`), and renamed when complete: a process
killed at any moment leaves the last complete checkpoint there. One whose files
are not what was sealed is put aside, with a line that says so, when a run is
opened again. The restored arrays take their shapes, dtypes and shardings from a
template, so a run may continue on another mesh than the one it was saved from.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import os
import pathlib
import shutil
from typing import Any
from typing import TypeVar

from etils import epath
import jax
import orbax.checkpoint as ocp

from jumprelu_jax import errors
from jumprelu_jax import hosts
from jumprelu_jax import identity as identity_lib
from jumprelu_jax import progress
from jumprelu_jax import seals

PyTree = TypeVar('PyTree')

# Of what a state means; changed with what a step computes of it.
_VERSION = 1
# Where Orbax puts a state in a step's folder.
_ITEM = 'default'
# As they are told by Orbax and by tensorstore.
_FULL = ('No space left', 'ENOSPC', 'Disk quota exceeded')


class Checkpointer:
  """Saves states of one run by step; keeps the last `keep` of them."""

  def __init__(
    self,
    directory: str | os.PathLike,
    *,
    keep: int = 2,
    identity: Mapping[str, Any] | None = None,
  ):
    """Puts aside what is damaged; removes what was being saved when all died.

    Args:
      directory: of the run's checkpoints.
      keep: of them.
      identity: JSON by key that a checkpoint must share to be restored.
    """
    self._directory = pathlib.Path(os.path.abspath(directory))
    self._identity = dict(identity or {})
    self._saving = None
    self._about = {}
    if hosts.is_first():
      self._about = _read_all(self._directory)
    hosts.meet('checkpoints')
    with _telling_of_full_disks(self._directory):
      self._manager = ocp.CheckpointManager(
        epath.Path(self._directory),
        options=ocp.CheckpointManagerOptions(
          max_to_keep=keep,
          enable_async_checkpointing=True,
          cleanup_tmp_directories=True,
          lightweight_initialize=True,
          async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        ),
      )

  def save(
    self, step: int, state: PyTree, notes: Mapping[str, Any] | None = None
  ) -> None:
    """Saves a pytree of jax arrays under a step.

    Returns when the arrays may be changed, or donated; waits for a save that is
    still being written. Errors of writing are raised by the next call.

    Args:
      step: later than all before, or one that is there, which stays.
      state: the arrays.
      notes: JSON by name that goes with them.

    Raises:
      errors.DiskFullError: no space was left for this one or the last.
    """
    if step in self.steps():  # of a run that goes on from an earlier step
      return
    with _telling_of_full_disks(self._directory):
      self._manager.wait_until_finished()
      leaves = _as_dict(state)
      self._saving = (
        step,
        {
          'version': _VERSION,
          'identity': self._identity,
          'state': _shapes(leaves),
          'notes': dict(notes or {}),
        },
      )
      self._manager.save(step, args=ocp.args.StandardSave(leaves))

  def steps(self) -> list[int]:
    """Returns the steps whose checkpoints are there, in order."""
    return sorted(self._manager.all_steps())

  def restore(self, step: int, template: PyTree) -> PyTree:
    """Returns the state saved under a step.

    Args:
      step: one of `steps`.
      template: a pytree of jax arrays like the saved one; each restored array
        gets its dtype and sharding.

    Raises:
      errors.InputError: it is of another run, version or shape.
    """
    leaves = _as_dict(template)
    self._check(step, leaves)
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, leaves)
    # Not by the manager, which reads files of its own that are under no seal.
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
      found = reader.restore(
        epath.Path(self._directory) / str(step) / _ITEM,
        args=ocp.args.StandardRestore(target),
      )
    structure = jax.tree.structure(template)
    return jax.tree.unflatten(structure, [found[name] for name in leaves])

  def notes(self, step: int) -> dict[str, Any]:
    """Returns the JSON that was saved with a step."""
    return self._read_about(step)['notes']

  def close(self) -> None:
    """Returns when all that was saved is on disk; releases Orbax's threads.

    Raises:
      errors.DiskFullError: no space was left for the last save.
    """
    with _telling_of_full_disks(self._directory):
      self._manager.close()

  def _read_about(self, step):
    if step not in self._about:
      folder = self._directory / str(step)
      try:
        self._about[step] = seals.read(folder)
      except seals.BrokenSealError as error:  # since it was opened
        raise errors.InputError(
          f'checkpoint {folder} is damaged: {error}; give the same command '
          'again: it goes on from the one before.'
        ) from error
    return self._about[step]

  def _check(self, step, leaves):
    """Raises InputError unless a checkpoint is of this run."""
    about = self._read_about(step)
    of = {'version': _VERSION, **self._identity, **_shapes(leaves)}
    found = {
      'version': about['version'],
      **about['identity'],
      **about['state'],
    }
    if differing := identity_lib.differences(found, of):
      raise errors.InputError(
        f'checkpoint {self._directory / str(step)} is of something else '
        f'({differing}); give another --workdir, or remove '
        f'{self._directory} to train anew.'
      )

  def _seal(self):
    """Seals what has been written, before it is renamed; of one process."""
    if not hosts.is_first():
      return
    step, about = self._saving
    (folder,) = self._directory.glob(f'{step}.orbax-checkpoint-tmp*')
    # What is beside the item is written once more when it is renamed.
    paths = [path for path in (folder / _ITEM).rglob('*') if path.is_file()]
    names = [str(path.relative_to(folder)) for path in paths]
    seals.write(folder, about, names)


def _read_all(directory):
  """Returns what was sealed by step; puts aside what is not as it was."""
  found = {}
  for folder in sorted(directory.glob('*')):
    if not folder.name.isdecimal():
      continue
    try:
      found[int(folder.name)] = seals.read(folder)
    except seals.BrokenSealError as error:
      aside = directory.with_name(f'{directory.name}_damaged') / folder.name
      shutil.rmtree(aside, ignore_errors=True)
      aside.parent.mkdir(exist_ok=True)
      folder.rename(aside)
      progress.say(
        f'WARNING: checkpoint {folder} is damaged: {error}. It was moved to '
        f'{aside}; training goes on from the one before, or from the start.'
      )
  return found


@contextlib.contextmanager
def _telling_of_full_disks(directory) -> Iterator[None]:
  """Turns whatever Orbax raises of a full disk into DiskFullError."""
  try:
    yield
  except Exception as error:
    if not any(word in str(error) for word in _FULL):
      raise
    free = shutil.disk_usage(directory.parent).free
    raise errors.DiskFullError(
      f'a checkpoint could not be written to {directory} (No space left on '
      f'device; {free:,} bytes are free). Those before it are complete; free '
      'some space and give the same command again: it goes on from there.'
    ) from error


def _shapes(leaves):
  return {
    name: f'{leaf.dtype}{list(leaf.shape)}' for name, leaf in leaves.items()
  }


def _as_dict(tree):
  """Flattens a pytree to {path: leaf}: Orbax need not know our classes."""
  paths_and_leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in paths_and_leaves
  }
