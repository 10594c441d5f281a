"""Arrays and JSON from files that may be damaged, or made to do harm.

Each reader returns a dict of NumPy arrays by name, or raises InputError. Sizes
are taken from what the file holds: a header that claims more is refused, and
the caller checks names, dtypes and shapes, before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import math
import os
import pathlib
import struct
from typing import Any
from typing import BinaryIO
from typing import NamedTuple
import zipfile

import ml_dtypes  # noqa: F401  (names bfloat16 for NumPy)
import numpy as np
import safetensors

from jumprelu_jax import errors
from jumprelu_jax import json_files

Arrays = dict[str, np.ndarray]


class Header(NamedTuple):
  """What a file says of an array before it is read."""

  shape: tuple[int, ...]
  dtype: str


#: What is called with the headers of a file, by name, before arrays are read;
#: it raises InputError for those that are not wanted.
Check = Callable[[Mapping[str, Header]], None]


def any_arrays(headers: Mapping[str, Header]) -> None:
  """Wants nothing of a file's arrays."""


# Deflate makes at most 1,032 bytes of one.
_MOST_INFLATION = 1032
# Weights hardly shrink: a large file that inflates by more holds none.
_LARGE_BYTES, _MOST_INFLATION_OF_LARGE = 2**30, 16
# safetensors' names of dtypes that are read.
_SAFETENSORS_DTYPES = (
  'F64', 'F32', 'F16', 'BF16', 'I64', 'I32', 'I16', 'I8', 'U8', 'BOOL',
)  # fmt: skip
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
    return json_files.read_object(path)


def group(config: Mapping[str, Any], name: str) -> dict[str, Any]:
  """Returns a nested object of a config; an empty one for what is none."""
  value = config.get(name)
  return value if isinstance(value, dict) else {}


def read_npz(path: str | os.PathLike, check: Check = any_arrays) -> Arrays:
  """Returns the arrays of a .npz file; objects are refused."""
  with naming(path, 'a .npz file of plain arrays'), zipfile.ZipFile(path) as z:
    infos = {info.filename.removesuffix('.npy'): info for info in members(z)}
    check({name: _npy_header(z, info)[0] for name, info in infos.items()})
    return {name: _read_npy(z, info) for name, info in infos.items()}


def read_safetensors(
  path: str | os.PathLike, check: Check = any_arrays
) -> Arrays:
  """Returns the arrays of a safetensors file."""
  with (
    naming(path, 'a safetensors file'),
    safetensors.safe_open(path, framework='numpy') as file,
  ):
    headers = {}
    for name in file.keys():  # noqa: SIM118
      view = file.get_slice(name)
      headers[name] = Header(tuple(view.get_shape()), view.get_dtype())
      if view.get_dtype() not in _SAFETENSORS_DTYPES:
        raise errors.InputError(
          f'{path}: {name[:80]} has dtype {view.get_dtype()}, which is not '
          'read; save it in float32, float16 or bfloat16.'
        )
    check(headers)
    return {name: file.get_tensor(name) for name in headers}


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
  whole = sum(info.file_size for info in infos)
  packed = sum(info.compress_size for info in infos)
  if whole > max(_LARGE_BYTES, _MOST_INFLATION_OF_LARGE * packed):
    raise ValueError(f'its {packed:,} bytes claim to be {whole:,}')
  return infos


def checked_size(shape: tuple[int, ...], dtype: np.dtype) -> int:
  """Returns an array's bytes; ValueError if it is none of plain numbers."""
  if dtype.type is np.void:
    raise ValueError(
      f'arrays of {dtype} are not read: .npy has no name for bfloat16 and '
      'float8; save them in float32'
    )
  if dtype.hasobject or dtype.kind not in 'fiubV':
    raise ValueError(f'arrays of {dtype} are not read')
  if any(not 0 <= size < 2**48 for size in shape):
    raise ValueError(f'shape {shape}')
  return math.prod(shape) * dtype.itemsize


def _npy_header(archive, info):
  """Returns (header, is_fortran, dtype, its bytes) of an entry.

  The entry must have the size that the header says.
  """
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
  return Header(shape, str(dtype)), is_fortran, dtype, counted.count


def _read_npy(archive, info):
  """Returns an entry's array."""
  header, is_fortran, dtype, skipped = _npy_header(archive, info)
  with archive.open(info) as file:
    file.read(skipped)
    flat = np.frombuffer(file.read(), dtype)
  return flat.reshape(header.shape, order='F' if is_fortran else 'C')


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
