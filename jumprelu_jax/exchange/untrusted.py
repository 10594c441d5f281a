"""Arrays and JSON from files that may be damaged, or made to do harm.

Each reader returns a dict of NumPy arrays by name, or raises InputError. Sizes
are taken from what the file holds: a header that claims more is refused before
anything is allocated.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import json
import math
import os
import pathlib
import struct
from typing import Any
from typing import BinaryIO
import zipfile

import ml_dtypes  # noqa: F401  (names bfloat16 for NumPy)
import numpy as np
import safetensors

from jumprelu_jax import errors

Arrays = dict[str, np.ndarray]

# A config or a header; real ones have some kilobytes.
_MOST_JSON_BYTES = 2**24
# Deflate makes at most 1,032 bytes of one.
_MOST_INFLATION = 1032
_NPY_HEADERS: dict[tuple[int, int], Callable] = {
  (1, 0): np.lib.format.read_array_header_1_0,
  (2, 0): np.lib.format.read_array_header_2_0,
}


@contextlib.contextmanager
def naming(path: str | os.PathLike, what: str) -> Iterator[None]:
  """Turns whatever goes wrong with a file into one InputError.

  Args:
    path: of the file.
    what: it should be, such as 'a .npz file'.
  """
  if not pathlib.Path(path).is_file():
    raise errors.InputError(f'{path} does not exist; expected {what}.')
  try:
    yield
  except errors.InputError:
    raise
  except MemoryError as error:
    raise errors.InputError(
      f'{path} does not fit into memory; expected {what} that does.'
    ) from error
  except Exception as error:  # readers of damaged files raise anything
    raise errors.InputError(
      f'{path} is not {what}, or is damaged ({type(error).__name__}: {error}).'
    ) from error


def read_json(path: str | os.PathLike) -> dict[str, Any]:
  """Returns a JSON object."""
  with naming(path, 'a JSON object'):
    size = pathlib.Path(path).stat().st_size
    if size > _MOST_JSON_BYTES:
      raise ValueError(f'{size:,} bytes are too many for a config')
    value = json.loads(pathlib.Path(path).read_bytes())
    if not isinstance(value, dict):
      raise ValueError(f'it holds a {type(value).__name__}')
    return value


def read_npz(path: str | os.PathLike) -> Arrays:
  """Returns the arrays of a .npz file; objects are refused."""
  with naming(path, 'a .npz file of plain arrays'), zipfile.ZipFile(path) as z:
    return {
      info.filename.removesuffix('.npy'): _read_npy(z, info)
      for info in members(z)
    }


def read_safetensors(path: str | os.PathLike) -> Arrays:
  """Returns the arrays of a safetensors file."""
  with (
    naming(path, 'a safetensors file'),
    safetensors.safe_open(path, framework='numpy') as file,
  ):
    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
  """Returns a zip file's entries; ValueError if one claims what cannot be."""
  infos = archive.infolist()
  names = [info.filename for info in infos]
  if len(set(names)) < len(names):
    raise ValueError('an entry is there twice')
  for info in infos:
    if info.file_size > _MOST_INFLATION * info.compress_size + 1024:
      raise ValueError(
        f'{info.filename} claims {info.file_size:,} bytes of '
        f'{info.compress_size:,}'
      )
  return infos


def checked_size(shape: tuple[int, ...], dtype: np.dtype) -> int:
  """Returns an array's bytes; ValueError if it is none of plain numbers."""
  if dtype.hasobject or dtype.kind not in 'fiubV':
    raise ValueError(f'arrays of {dtype} are not read')
  if any(not 0 <= size < 2**48 for size in shape):
    raise ValueError(f'shape {shape}')
  return math.prod(shape) * dtype.itemsize


def _read_npy(archive, info):
  """Returns an entry's array, whose size the entry must have."""
  with archive.open(info) as file:
    counted = _Counted(file)
    version = np.lib.format.read_magic(counted)
    if version not in _NPY_HEADERS:
      raise ValueError(f'.npy version {version}')
    shape, is_fortran, dtype = _NPY_HEADERS[version](counted)
    size = checked_size(shape, dtype)
    if counted.count + size != info.file_size:
      raise ValueError(
        f'{info.filename} claims {size:,} bytes, and has '
        f'{info.file_size - counted.count:,}'
      )
    flat = np.frombuffer(file.read(), dtype)
  return flat.reshape(shape, order='F' if is_fortran else 'C')


class _Counted:
  """A file that counts what is read of it."""

  def __init__(self, file: BinaryIO):
    self._file, self.count = file, 0

  def read(self, size: int) -> bytes:
    data = self._file.read(size)
    self.count += len(data)
    return data


def little_endian(number: int) -> bytes:
  """Returns an int as four bytes."""
  return struct.pack('<i', number)
