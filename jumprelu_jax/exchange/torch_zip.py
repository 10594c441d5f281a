"""PyTorch's files of tensors (`torch.save` of a state dict), without PyTorch.

Such a file is a zip of a pickle and of the tensors' bytes. A pickle is a
program; this reads those alone that make a dict of tensors: a name that is none
of the few below ends it, and nothing of the file's choosing is called.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
import io
import os
import pickle
import zipfile

import ml_dtypes
import numpy as np

from jumprelu_jax import whole
from jumprelu_jax.exchange import untrusted

_DTYPES = {
  'DoubleStorage': np.dtype('float64'),
  'FloatStorage': np.dtype('float32'),
  'HalfStorage': np.dtype('float16'),
  'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
  'LongStorage': np.dtype('int64'),
  'IntStorage': np.dtype('int32'),
  'ShortStorage': np.dtype('int16'),
  'CharStorage': np.dtype('int8'),
  'ByteStorage': np.dtype('uint8'),
  'BoolStorage': np.dtype('bool'),
}
_STORAGES = {dtype: name for name, dtype in _DTYPES.items()}
_MOST_PICKLE_BYTES = 2**24


def read(path: str | os.PathLike) -> untrusted.Arrays:
  """Returns the tensors of a state dict by name.

  Raises:
    errors.InputError: the file is missing, damaged, or holds more than tensors
      in a dict.
  """
  what = 'a file that torch.save has written of tensors in a dict'
  with untrusted.naming(path, what), zipfile.ZipFile(path) as archive:
    infos = {info.filename: info for info in untrusted.members(archive)}
    programs = [name for name in infos if name.split('/')[1:] == ['data.pkl']]
    if len(programs) != 1:
      raise ValueError('there is no data.pkl')
    if infos[programs[0]].file_size > _MOST_PICKLE_BYTES:
      raise ValueError('its data.pkl is too large')
    root = programs[0].partition('/')[0]
    order = f'{root}/byteorder'
    if order in infos and archive.read(order) != b'little':
      raise ValueError('its numbers are big-endian')
    unpickler = _Unpickler(archive, infos, root, archive.read(programs[0]))
    return _checked(unpickler.load())


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes arrays as torch.save writes a dict of tensors."""
  with whole.replacing(path) as file, zipfile.ZipFile(file, 'w') as archive:
    archive.writestr('archive/data.pkl', _program(arrays))
    archive.writestr('archive/byteorder', 'little')
    for i, array in enumerate(arrays.values()):
      # Not ndarray.tobytes: that would copy once more.
      contiguous = np.ascontiguousarray(array)
      archive.writestr(f'archive/data/{i}', contiguous.data.cast('B'))
    archive.writestr('archive/version', '3\n')


def _checked(value):
  """Returns a dict of arrays, or of what has one; ValueError if it is none."""
  if not isinstance(value, dict):
    raise ValueError(f'it holds a {type(value).__name__}')
  for name, array in value.items():
    if not isinstance(name, str) or not isinstance(array, np.ndarray):
      raise ValueError(f'{name!r} is no tensor')
  return dict(value)


class _Unpickler(pickle.Unpickler):
  """Makes arrays where PyTorch would make tensors; knows no other names."""

  def __init__(self, archive, infos, root, program):
    super().__init__(io.BytesIO(program))
    self._archive, self._infos, self._root = archive, infos, root

  def find_class(self, module, name):
    if (module, name) == ('collections', 'OrderedDict'):
      return collections.OrderedDict
    if module == 'torch._utils' and name == '_rebuild_tensor_v2':
      return _array
    if module == 'torch._utils' and name == '_rebuild_parameter':
      return _parameter
    if module == 'torch' and name in _DTYPES:
      return _DTYPES[name]
    raise ValueError(f'it calls {module}.{name}')

  def persistent_load(self, pid):
    kind, dtype, key, _, count = pid
    if kind != 'storage' or not isinstance(dtype, np.dtype):
      raise ValueError(f'it holds a {kind!r}')
    name = f'{self._root}/data/{key}'
    size = untrusted.checked_size((count,), dtype)
    if name not in self._infos or self._infos[name].file_size != size:
      raise ValueError(f'{name} has not the {size:,} bytes that it claims')
    return np.frombuffer(self._archive.read(name), dtype)


def _array(flat, offset, shape, stride, *_):
  """Returns a view of a storage; ValueError if it reaches beyond."""
  untrusted.checked_size(shape, flat.dtype)
  if len(shape) != len(stride) or offset < 0 or min(stride, default=0) < 0:
    raise ValueError(f'a tensor of shape {shape}, stride {stride}')
  steps = zip(shape, stride, strict=True)
  is_empty = 0 in shape
  last = offset + sum((size - 1) * step for size, step in steps)
  if not is_empty and last >= len(flat):
    raise ValueError(f'a tensor of shape {shape} reaches beyond its bytes')
  if int(np.prod(shape, dtype=object)) > len(flat):
    raise ValueError(f'a tensor of shape {shape} repeats its bytes')
  if is_empty:
    return np.empty(shape, flat.dtype)
  view = np.lib.stride_tricks.as_strided(
    flat[offset:],
    shape,
    [step * flat.itemsize for step in stride],
    writeable=False,
  )
  return np.ascontiguousarray(view).reshape(shape)


def _parameter(array, *_):
  return array


def _program(arrays):
  """Returns the pickle of a dict of tensors, whose bytes lie beside it."""
  items = b''.join(
    _text(name) + _tensor(str(i), np.asarray(array))
    for i, (name, array) in enumerate(arrays.items())
  )
  return (
    pickle.PROTO + b'\x02' + pickle.EMPTY_DICT + pickle.MARK + items
    + pickle.SETITEMS + pickle.STOP
  )  # fmt: skip


def _tensor(key, array):
  storage = (
    pickle.MARK
    + _text('storage') + _global('torch', _STORAGES[array.dtype]) + _text(key)
    + _text('cpu') + _int(array.size)
    + pickle.TUPLE + pickle.BINPERSID
  )  # fmt: skip
  strides = [
    s // array.itemsize for s in np.empty_like(array, order='C').strides
  ]
  arguments = (
    storage + _int(0) + _ints(array.shape) + _ints(strides) + pickle.NEWFALSE
    + _global('collections', 'OrderedDict') + pickle.EMPTY_TUPLE + pickle.REDUCE
  )  # fmt: skip
  return (
    _global('torch._utils', '_rebuild_tensor_v2')
    + pickle.MARK + arguments + pickle.TUPLE + pickle.REDUCE
  )  # fmt: skip


def _global(module, name):
  return pickle.GLOBAL + f'{module}\n{name}\n'.encode()


def _text(text):
  data = text.encode()
  return pickle.BINUNICODE + untrusted.little_endian(len(data)) + data


def _int(number):
  if number < 2**31:
    return pickle.BININT + untrusted.little_endian(number)
  return pickle.dumps(number, 2)[2:-1]  # without its protocol and its end


def _ints(numbers):
  return pickle.MARK + b''.join(map(_int, numbers)) + pickle.TUPLE
