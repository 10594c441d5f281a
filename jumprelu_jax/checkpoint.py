"""Checkpoints of a pytree of arrays, saved and restored by Orbax.

A save is copied off the devices, then written by threads while training goes
on, beside its place, sealed (`seals`), and renamed when complete: a process
killed at any moment, or a loss of power, leaves the last complete checkpoint
there. One whose files are not what was sealed is put aside, with a line that
says so, when a run is opened again; one that was being removed has another name
by then, and is removed without a word. The restored arrays take their shapes,
dtypes and shardings from a template, so a run may continue on another mesh than
the one it was saved from.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import errno
import itertools
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
from jumprelu_jax import whole

PyTree = TypeVar('PyTree')

# Of what a state means; changed with what a step computes of it.
_VERSION = 1
# Where Orbax puts a state in a step's folder.
_ITEM = 'default'
# Of folders that are not complete, or no longer.
_UNFINISHED, _REMOVED = '*.orbax-checkpoint-tmp*', '*.removed'
# Checkpointers opened so far; the same in all processes, which open the same.
_opened = itertools.count()


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
    self._identity, self._keep = dict(identity or {}), keep
    self._saving = None
    self._about = {}

    def find():
      whole.make_folder(self._directory)
      self._about = _read_all(self._directory, keep)
      return sorted(self._about)

    self._steps = hosts.from_first('checkpoints', find)
    with _telling_of_disks(self._directory):
      self._manager = ocp.CheckpointManager(
        epath.Path(self._directory),
        options=ocp.CheckpointManagerOptions(
          enable_async_checkpointing=True,
          lightweight_initialize=True,
          async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
          # Processes meet by name while threads write, and several SAEs are
          # written at the same time.
          multiprocessing_options=ocp.options.MultiprocessingOptions(
            barrier_sync_key_prefix=f'checkpointer_{next(_opened)}'
          ),
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
      errors.InputError: the disk failed, or the folder is gone.
    """
    if step in self.steps():  # of a run that goes on from an earlier step
      return
    with _telling_of_disks(self._directory):
      self._finish()
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
      arguments = ocp.args.StandardSave(leaves)
      self._manager.save(step, args=arguments, force=True)
      self._steps.append(step)

  def steps(self) -> list[int]:
    """Returns the steps whose checkpoints are there, in order."""
    return list(self._steps)

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
      errors.InputError: the disk failed, or the folder is gone.
    """
    with _telling_of_disks(self._directory):
      self._finish()
      self._manager.close()

  def _finish(self):
    """Waits for what is being written, and removes what need not be kept."""
    self._manager.wait_until_finished()
    old, self._steps = self._steps[: -self._keep], self._steps[-self._keep :]
    if not hosts.is_first() or not self._directory.is_dir():
      return
    whole.sync(self._directory)  # the last one's name, before one goes
    for step in old:
      folder = self._directory / str(step)
      if folder.is_dir():  # unless someone has removed it
        folder.rename(folder.with_suffix('.removed'))
    if old:
      whole.sync(self._directory)
    _remove(self._directory, _REMOVED)

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
    folder = next(self._directory.glob(f'{step}.orbax-checkpoint-tmp*'), None)
    if folder is None:
      raise FileNotFoundError(
        errno.ENOENT, os.strerror(errno.ENOENT), str(self._directory)
      )
    # What is beside the item is written once more when it is renamed.
    paths = [path for path in (folder / _ITEM).rglob('*') if path.is_file()]
    names = [str(path.relative_to(folder)) for path in paths]
    seals.write(folder, about, names)


def _read_all(directory, keep):
  """Returns what was sealed by step; puts aside what is not as it was.

  What was not complete, or was being removed, is removed. So are damaged ones
  that are older than as many as are kept: earlier versions removed them file by
  file.
  """
  for pattern in (_UNFINISHED, _REMOVED):
    _remove(directory, pattern)
  found = {}
  names = (path.name for path in directory.glob('*'))
  for step in sorted(map(int, filter(str.isdecimal, names)), reverse=True):
    folder = directory / str(step)
    try:
      found[step] = seals.read(folder)
    except seals.BrokenSealError as error:
      if len(found) >= keep:
        shutil.rmtree(folder)
        continue
      aside = directory.with_name(f'{directory.name}_damaged') / folder.name
      shutil.rmtree(aside, ignore_errors=True)
      aside.parent.mkdir(exist_ok=True)
      folder.rename(aside)
      progress.say(
        f'WARNING: checkpoint {folder} is damaged: {error}. It was moved to '
        f'{aside}; training goes on from the one before, or from the start.'
      )
  return found


def _remove(directory, pattern):
  for folder in directory.glob(pattern):
    shutil.rmtree(folder)


@contextlib.contextmanager
def _telling_of_disks(directory) -> Iterator[None]:
  """Turns whatever Orbax raises of a disk into an InputError, or DiskFullError.

  Also of a folder that is gone.
  """
  try:
    yield
  except Exception as error:
    found = errors.system_error(error)
    if found is None:
      raise
    advice = 'see to it'
    if errors.of_writing(found) is errors.DiskFullError:
      free = shutil.disk_usage(directory.parent).free
      advice = f'{free:,} bytes are free; free some space'
    raise errors.of_writing(found)(
      f'a checkpoint could not be written to {found.filename or directory} '
      f'({found.strerror}). Those before it, as far as they are there, are '
      f'complete; {advice} and give the same command again: it resumes from '
      'there.'
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
