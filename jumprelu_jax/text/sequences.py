"""Rows of tokens on disk: one .npy file, written row by row, read mapped."""

from __future__ import annotations

from collections.abc import Iterator
import itertools
import os
import pathlib
import time

import numpy as np

from jumprelu_jax import errors
from jumprelu_jax import preemption
from jumprelu_jax import progress
from jumprelu_jax import shapes
from jumprelu_jax import whole

_SECONDS_PER_LINE = 10.0


def write(
  rows: Iterator[np.ndarray], path: str | os.PathLike, *, max_rows: int
) -> None:
  """Writes rows to a .npy file (int32 [N, L]), never holding all in memory.

  The file appears complete or not at all: it is written beside, under a name
  that ends in `.partial`, and then renamed. Lines of progress are said every
  ten seconds.

  Args:
    rows: int32 [L], all of one length; no more are asked for than are written.
    path: file to write; an earlier one is replaced.
    max_rows: stop after this many; 0 writes all.

  Raises:
    errors.InputError: there is no row.
    errors.DiskFullError: there is no space for them.
    preemption.PreemptedError: the process was asked to end.
  """
  rows = itertools.islice(rows, max_rows or None)
  first = next(rows, None)
  if first is None:
    raise errors.InputError(
      'There is no document to pack; give a text with some.'
    )
  size = _Size(first)
  try:
    with whole.replacing(path) as file:
      _write_rows(itertools.chain([first], rows), file, size)
  except OSError as error:
    if errors.of_writing(error) is errors.DiskFullError:
      raise errors.DiskFullError(
        f'{path} does not fit on its disk: no space was left after about '
        f'{size.bytes:,} bytes ({size.rows:,} sequences); make space, or take '
        'fewer sequences.'
      ) from error
    raise


def open(path: str | os.PathLike) -> np.ndarray:  # noqa: A001
  """Returns the rows of a file of `write`, mapped read-only: int32 [N, L].

  Raises:
    errors.InputError: the file is missing, damaged, or holds something else.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise errors.InputError(
      f'file of sequences {path} does not exist; make it anew.'
    )
  try:
    tokens_NL = np.load(path, mmap_mode='r', allow_pickle=False)
    is_whole = path.stat().st_size == tokens_NL.offset + tokens_NL.nbytes
  except errors.OF_DAMAGED_ARRAYS as error:  # an .npz has no offset, too
    raise errors.InputError(
      f'file of sequences {path} is damaged or no .npy file '
      f'({type(error).__name__}: {error}); remove it and make it anew.'
    ) from error
  if not is_whole:
    raise errors.InputError(
      f'file of sequences {path} is damaged: it is longer than its header '
      'says; remove it and make it anew.'
    )
  is_rows = tokens_NL.dtype == np.int32 and tokens_NL.ndim == 2
  if not is_rows or not tokens_NL.size:
    raise errors.InputError(
      f'file of sequences {path} holds {tokens_NL.dtype} of shape '
      f'{tokens_NL.shape}; expected int32 of rank 2 with rows: give another '
      'file, or remove it and make it anew.'
    )
  if len(tokens_NL) > shapes.LARGEST_INDEX:
    raise errors.InputError(
      f'file of sequences {path} holds {len(tokens_NL):,}, expected at most '
      f'{shapes.LARGEST_INDEX:,}; set config.activations.sequences, or '
      'lengthen config.text.context_length.'
    )
  return tokens_NL


class _Size:
  """Counts what is written, and says it every ten seconds."""

  def __init__(self, first_L):
    assert first_L.dtype == np.int32
    self.shape_of_row = first_L.shape
    self.rows = self.bytes = 0
    self._began = self._last_line = time.monotonic()

  def add(self, row_L):
    assert row_L.dtype == np.int32
    assert row_L.shape == self.shape_of_row
    self.rows += 1
    self.bytes += row_L.nbytes
    now = time.monotonic()
    if now - self._last_line >= _SECONDS_PER_LINE:
      self._last_line = now
      rate = self.rows / (now - self._began)
      progress.say(
        f'packing text: {self.rows:,} sequences, {rate:,.0f} sequences/s'
      )


def _write_rows(rows, file, size):
  _write_header(file, 0, size)
  start = file.tell()
  for row_L in rows:
    preemption.check(
      'packing of text was stopped on request; the same command begins anew.'
    )
    file.write(row_L.tobytes())
    size.add(row_L)
  file.seek(0)
  _write_header(file, size.rows, size)
  # NumPy leaves room in the header for the first axis to grow.
  assert file.tell() == start


def _write_header(file, rows, size):
  np.lib.format.write_array_header_1_0(
    file,
    {
      'descr': np.lib.format.dtype_to_descr(np.dtype(np.int32)),
      'fortran_order': False,
      'shape': (rows, *size.shape_of_row),
    },
  )
