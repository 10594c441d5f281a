"""Will it fit on the disk: asked before long work, not after."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
import os
import pathlib

from jumprelu_jax import errors
from jumprelu_jax.activations import places


def check(
  folder: str | os.PathLike,
  needs: Mapping[str, int],
  remedy: str,
  parts: Iterable[str | os.PathLike] = ('',),
) -> None:
  """Checks that what is to be written fits beside what is there.

  Args:
    folder: that will be written to; may not be there yet.
    needs: bytes at most of each thing, complete; what is there of them already
      is not needed again.
    remedy: how to need less.
    parts: folders in the folder in which that is; '' is all of it.

  Raises:
    errors.DiskFullError: they do not fit; says the numbers.
  """
  free = places.at(folder).free_bytes()
  if free is None:  # of a URL nobody knows
    return
  there = sum(used(pathlib.Path(folder) / part) for part in parts)
  wanted = sum(needs.values())
  if wanted - there <= free:
    return
  parts = ', '.join(f'{what} {n:,}' for what, n in needs.items() if n)
  raise errors.DiskFullError(
    f'{folder} needs about {wanted:,} bytes ({parts}); {there:,} are there and '
    f'{free:,} are free: {wanted - there - free:,} too few. Free some space, '
    f'give another folder, or {remedy}. Nothing was written.'
  )


def used(folder: str | os.PathLike) -> int:
  """Returns the bytes of all files in a local folder; 0 where there is none."""
  found = 0
  for path in pathlib.Path(folder).rglob('*'):
    try:
      found += path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:  # removed meanwhile
      continue
  return found
