"""Checkpoints of a pytree of arrays, saved and restored by Orbax.

A save is copied off the devices, then written by threads while training goes
on, beside its place, and renamed when complete: a process killed at any moment
leaves the last complete checkpoint there. The restored arrays take
their shapes, dtypes and shardings from a template, so a run may continue on
another mesh than the one it was saved from.
"""

from __future__ import annotations

import os
from typing import TypeVar

from etils import epath
import jax
import orbax.checkpoint as ocp

PyTree = TypeVar('PyTree')


class Checkpointer:
  """Saves states of one run by step; keeps the last `keep` of them."""

  def __init__(self, directory: str | os.PathLike, *, keep: int = 2):
    self._manager = ocp.CheckpointManager(
      epath.Path(os.path.abspath(directory)),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, enable_async_checkpointing=True
      ),
    )

  def save(self, step: int, state: PyTree) -> None:
    """Saves a pytree of jax arrays under a step.

    Returns when the arrays may be changed, or donated; waits for a save that is
    still being written. Errors of writing are raised by the next call.
    """
    self._manager.save(step, args=ocp.args.StandardSave(_as_dict(state)))

  def steps(self) -> list[int]:
    """Returns the steps whose checkpoints are there, in order."""
    return sorted(self._manager.all_steps())

  def restore(self, step: int, template: PyTree) -> PyTree:
    """Returns the state saved under a step.

    Args:
      step: one of `steps`.
      template: a pytree of jax arrays like the saved one; each restored array
        gets its dtype and sharding.
    """
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _as_dict(template))
    leaves = self._manager.restore(step, args=ocp.args.StandardRestore(target))
    structure = jax.tree.structure(template)
    ordered = [leaves[name] for name in _as_dict(template)]
    return jax.tree.unflatten(structure, ordered)

  def close(self) -> None:
    """Returns when all that was saved is on disk; releases Orbax's threads."""
    self._manager.close()


def _as_dict(tree):
  """Flattens a pytree to {path: leaf}: Orbax need not know our classes."""
  paths_and_leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in paths_and_leaves
  }
