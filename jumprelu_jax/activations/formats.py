"""How the rows of a shard lie on disk: .npy, or zarr3 through tensorstore.

A format writes rows [N, D], float32 or bfloat16, and opens them as something to
slice. Which rows, and what else is kept of them, is `store`'s affair.

Blocks of 256 rows are what readers ask for. Npy: one local file, mapped, so a
block is a memcpy; nothing is checked when it is read. Zarr3: local or at a URL,
each block with a CRC that is checked when it is read; ten times dearer.
"""

from __future__ import annotations

from collections.abc import Sequence
import os
import pathlib
from typing import Protocol

import ml_dtypes
import numpy as np
import tensorstore as ts

from jumprelu_jax import errors
from jumprelu_jax import whole
from jumprelu_jax.activations import places

BLOCK_ROWS = 256

DTYPES = {
  'float32': np.dtype(np.float32),
  'bfloat16': np.dtype(ml_dtypes.bfloat16),
}


class Reader(Protocol):
  """Rows of a shard; an array is one, too."""

  def __len__(self) -> int:
    """Returns N."""

  def __getitem__(self, rows: slice) -> np.ndarray:
    """Returns rows [start:stop] as a C-contiguous array [n, D]."""


class Npy:
  """One .npy file. It knows no bfloat16, so the bits are stored as uint16."""

  suffix = '.npy'
  checks_blocks = False

  def write(self, path: str | os.PathLike, rows_ND: np.ndarray) -> None:
    """Writes all rows; raises OSError, or InputError for a URL."""
    bits_ND = np.ascontiguousarray(rows_ND).view(_bits(rows_ND.dtype))
    with whole.replacing(_local(path)) as file:
      np.lib.format.write_array_header_1_0(
        file, np.lib.format.header_data_from_array_1_0(bits_ND)
      )
      # Not ndarray.tofile: its OSError does not say that the disk is full.
      file.write(bits_ND.data)

  def open(
    self, path: str | os.PathLike, shape: tuple[int, int], dtype: np.dtype
  ) -> np.ndarray:
    """Returns the rows, mapped from disk, read-only.

    Raises:
      errors.InputError: the file is missing, cut off or of other rows.
    """
    path = _local(path)
    if not path.is_file():
      raise errors.InputError(f'{path} is missing; {remedy(path)}')
    expected = (shape, _bits(dtype))
    try:
      with path.open('rb') as file:
        np.lib.format.read_magic(file)
        got_shape, _, got_dtype = np.lib.format.read_array_header_1_0(file)
        offset = file.tell()
    except errors.OF_DAMAGED_ARRAYS as error:
      raise damaged(path, 'the header of a .npy file', error) from error
    if (got_shape, got_dtype) != expected:
      got = f'{list(got_shape)} of {got_dtype}'
      raise damaged(path, f'{list(shape)} of {expected[1]}', got)
    size = offset + shape[0] * shape[1] * dtype.itemsize
    if path.stat().st_size != size:
      raise damaged(path, f'{size:,} bytes', f'{path.stat().st_size:,}')
    if not shape[0]:
      return np.empty(shape, dtype)  # nothing cannot be mapped
    mapped = np.memmap(path, np.uint8, 'r', offset)
    return mapped.view(np.ndarray).view(dtype).reshape(shape)


class Zarr3:
  """A zarr3 array of one outer shard, so one file, of blocks with CRCs."""

  suffix = '.zarr'
  checks_blocks = True

  def write(self, path: str | os.PathLike, rows_ND: np.ndarray) -> None:
    """Writes all rows; raises OSError."""
    spec = {
      'driver': 'zarr3',
      'kvstore': places.kvstore(path),
      'metadata': _zarr_metadata(rows_ND),
      # Else blocks of zeros would not be stored, and look as if they were lost.
      'store_data_equal_to_fill_value': True,
    }
    with places.writing():
      array = ts.open(
        spec, create=True, delete_existing=True, context=places.CONTEXT
      ).result()
      array.write(rows_ND).result()
    if not places.is_url(path):
      whole.sync_tree(path)

  def open(
    self, path: str | os.PathLike, shape: tuple[int, int], dtype: np.dtype
  ) -> Zarr3Reader:
    """Returns a reader of the rows.

    Raises:
      errors.InputError: the array is missing, cut off or of other rows.
    """
    spec = {
      'driver': 'zarr3',
      'kvstore': places.kvstore(path),
      'fill_missing_data_reads': False,  # else a lost file would read as zeros
      # A shard is never written twice while it is read.
      'recheck_cached_metadata': 'open',
      'recheck_cached_data': 'open',
    }
    try:
      array = ts.open(spec, open=True, context=places.CONTEXT).result()
    except ValueError as error:
      if 'NOT_FOUND' in str(error):
        raise errors.InputError(
          f'{path} is missing or incomplete; {remedy(path)}'
        ) from error
      raise damaged(path, 'a zarr3 array', places.brief(error)) from error
    got = (tuple(array.shape), array.dtype.numpy_dtype)
    if got != (tuple(shape), dtype):
      raise damaged(
        path, f'{list(shape)} of {dtype}', f'{list(got[0])} of {got[1]}'
      )
    reader = Zarr3Reader(path, array)
    reader[0:1]  # reads the index too, which is at the end: not cut off
    return reader


class Zarr3Reader:
  """Rows of a zarr3 shard; each read checks the blocks that it touches."""

  def __init__(self, path: str | os.PathLike, array: ts.TensorStore):
    self._path, self._array = path, array

  def __len__(self) -> int:
    """Returns N."""
    return self._array.shape[0]

  def __getitem__(self, rows: slice) -> np.ndarray:
    """Returns rows [start:stop]; raises InputError if a block is damaged."""
    return self.read_together([rows])[0]

  def read_together(self, slices: Sequence[slice]) -> list[np.ndarray]:
    """Returns several slices, read at once: afar, each is a round trip."""
    slices = [slice(*s.indices(len(self))) for s in slices]
    try:
      futures = [self._array[s].read(order='C') for s in slices]
      return [future.result() for future in futures]
    except ValueError as error:
      expected = 'blocks whose CRC is right'
      raise damaged(self._path, expected, places.brief(error)) from error


FORMATS = {'npy': Npy(), 'zarr3': Zarr3()}


def get(name: str) -> Npy | Zarr3:
  """Returns a format by its name.

  Raises:
    errors.InputError: there is none of that name.
  """
  if name not in FORMATS:
    raise errors.InputError(
      f'format={name!r} is unknown; use one of {sorted(FORMATS)}.'
    )
  return FORMATS[name]


def read_together(
  reader: Reader, slices: Sequence[slice]
) -> Sequence[np.ndarray]:
  """Returns several slices of a reader, all at once where that is faster."""
  if isinstance(reader, Zarr3Reader):
    return reader.read_together(slices)
  return [reader[s] for s in slices]


def damaged(
  path: str | os.PathLike, expected: object, got: object
) -> errors.InputError:
  """Returns the error that says what is wrong with a shard's file."""
  return errors.InputError(
    f'{path} is damaged: expected {expected}, got {got}; {remedy(path)}'
  )


def remedy(path: str | os.PathLike) -> str:
  """Returns what to do about a bad file of a shard."""
  stem = str(path).rsplit('/', 1)[-1].split('.')[0]
  return (
    f'delete {stem}.* and run experiments.harvest again: only it is made again.'
  )


def _bits(dtype):
  return np.dtype(np.uint16) if dtype == DTYPES['bfloat16'] else dtype


def _local(path):
  if places.is_url(path):
    raise errors.InputError(
      f'format npy writes to local folders only, got {path}; use format zarr3 '
      'for a URL.'
    )
  return pathlib.Path(path)


def _zarr_metadata(rows_ND):
  num_rows, d_model = rows_ND.shape
  crc = [
    {'name': 'bytes', 'configuration': {'endian': 'little'}},
    {'name': 'crc32c'},
  ]
  blocks = max(1, -(-num_rows // BLOCK_ROWS))
  return {
    'shape': [num_rows, d_model],
    'data_type': rows_ND.dtype.name,
    'chunk_grid': {
      'name': 'regular',
      'configuration': {'chunk_shape': [blocks * BLOCK_ROWS, d_model]},
    },
    'codecs': [
      {
        'name': 'sharding_indexed',
        'configuration': {
          'chunk_shape': [BLOCK_ROWS, d_model],
          'codecs': crc,
          'index_codecs': crc,
        },
      }
    ],
  }
