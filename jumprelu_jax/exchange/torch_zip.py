"""PyTorch's files of tensors (`torch.save` of a state dict), without PyTorch.

Such a file is a zip of a pickle and of the tensors' bytes. A pickle is a
program; this reads those alone that make a dict of tensors: an instruction or a
name that is none of those below ends it, and nothing of the file's choosing is
called. Nothing is read before names, shapes and sizes are known and checked.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
import dataclasses
import io
import math
import os
import pickle
import pickletools
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
# Of a state dict of an SAE; real ones have some kilobytes.
_MOST_PICKLE_BYTES = 2**18
_MOST_AXES = 8
# The instructions of pickles that torch.save writes of state dicts.
_OPCODES = frozenset(
  {
    'PROTO', 'FRAME', 'STOP', 'MARK', 'EMPTY_DICT', 'EMPTY_LIST', 'EMPTY_TUPLE',
    'TUPLE', 'TUPLE1', 'TUPLE2', 'TUPLE3', 'BINUNICODE', 'SHORT_BINUNICODE',
    'BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT', 'NEWTRUE', 'NEWFALSE',
    'NONE', 'GLOBAL', 'STACK_GLOBAL', 'REDUCE', 'BUILD', 'BINPERSID', 'SETITEM',
    'SETITEMS', 'APPEND', 'APPENDS', 'BINPUT', 'LONG_BINPUT', 'MEMOIZE',
    'BINGET', 'LONG_BINGET',
  }
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class _Storage:
  """Bytes of a file that tensors lie in: the entry, and what it holds."""

  entry: str
  dtype: np.dtype
  count: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Tensor:
  """Where a tensor lies; nothing is read before all of them are known."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  stride: tuple[int, ...]

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  def view(self, flat: np.ndarray) -> np.ndarray:
    """Returns the tensor, of its storage's numbers."""
    if not self.size:
      return np.empty(self.shape, flat.dtype)
    view = np.lib.stride_tricks.as_strided(
      flat[self.offset :],
      self.shape,
      [step * flat.itemsize for step in self.stride],
      writeable=False,
    )
    return np.ascontiguousarray(view).reshape(self.shape)


def read(
  path: str | os.PathLike, check: untrusted.Check = untrusted.any_arrays
) -> untrusted.Arrays:
  """Returns the tensors of a state dict by name.

  Args:
    path: of the file.
    check: is called with names, shapes and dtypes before any tensor is read.

  Raises:
    errors.InputError: the file is missing, damaged, or holds more than tensors
      in a dict; or `check` raises it.
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
    if order in infos and archive.open(order).read(8) != b'little':
      raise ValueError('its numbers are big-endian')
    program = archive.read(programs[0])
    _check_program(program)
    tensors = _checked(_Unpickler(infos, root, program).load())
    check(
      {
        name: untrusted.Header(t.shape, str(t.storage.dtype))
        for name, t in tensors.items()
      }
    )
    return _read_tensors(archive, tensors)


def _check_program(program):
  """Raises ValueError for instructions that no state dict needs.

  One of them could take any amount of memory: an index of the memo alone.
  """
  for opcode, argument, _ in pickletools.genops(program):
    if opcode.name not in _OPCODES:
      raise ValueError(f'its pickle has the instruction {opcode.name}')
    if opcode.name.endswith('BINPUT') and argument > len(program):
      raise ValueError(f'its pickle has a memo of {argument:,} entries')


def _read_tensors(archive, tensors):
  """Reads each storage once; ValueError if tensors are more than they hold."""
  storages = {t.storage.entry: t.storage for t in tensors.values()}
  there = sum(s.count * s.dtype.itemsize for s in storages.values())
  wanted = sum(t.size * t.storage.dtype.itemsize for t in tensors.values())
  if wanted > there:
    raise ValueError(f'tensors of {wanted:,} bytes share {there:,}')
  found = {}
  for entry, storage in storages.items():
    flat = np.frombuffer(archive.read(entry), storage.dtype)
    for name, tensor in tensors.items():
      if tensor.storage.entry == entry:
        found[name] = tensor.view(flat)
  return {name: found[name] for name in tensors}


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
  """Returns a dict of tensors; ValueError if it is none."""
  if not isinstance(value, dict):
    raise ValueError(f'it holds a {type(value).__name__}')
  for name, tensor in value.items():
    if not isinstance(name, str):
      raise ValueError(f'a name in it is a {type(name).__name__}')
    if not isinstance(tensor, _Tensor):
      raise ValueError(f'{name[:80]!r} is no tensor')
  storages = {}
  for tensor in value.values():
    storage = storages.setdefault(tensor.storage.entry, tensor.storage)
    if storage != tensor.storage:
      raise ValueError(f'{storage.entry} is there with two dtypes')
  return dict(value)


class _Unpickler(pickle.Unpickler):
  """Notes where PyTorch would make tensors; knows no other names."""

  def __init__(self, infos, root, program):
    super().__init__(io.BytesIO(program))
    self._infos, self._root = infos, root

  def find_class(self, module, name):
    if (module, name) == ('collections', 'OrderedDict'):
      return collections.OrderedDict
    if module == 'torch._utils' and name == '_rebuild_tensor_v2':
      return _tensor_at
    if module == 'torch._utils' and name == '_rebuild_parameter':
      return _parameter
    if module == 'torch' and name in _DTYPES:
      return _DTYPES[name]
    raise ValueError(f'it calls {module[:80]}.{name[:80]}')

  def persistent_load(self, pid):
    if type(pid) is not tuple or len(pid) != 5:
      raise ValueError('it holds something that is no storage')
    kind, dtype, key, _, count = pid
    if kind != 'storage' or not isinstance(dtype, np.dtype):
      raise ValueError('it holds something that is no storage')
    if type(key) is not str or type(count) is not int:
      raise ValueError('it holds a storage without a name or a size')
    name = f'{self._root}/data/{key}'
    size = untrusted.checked_size((count,), dtype)
    if name not in self._infos or self._infos[name].file_size != size:
      raise ValueError(f'{name[:80]} has not the {size:,} bytes that it claims')
    return _Storage(name, dtype, count)


def _tensor_at(storage, offset, shape, stride, *_):
  """Returns where a tensor lies; ValueError if it reaches beyond."""
  if type(storage) is not _Storage or type(offset) is not int:
    raise ValueError('a tensor lies in no storage')
  for numbers in (shape, stride):
    if type(numbers) is not tuple or not all(type(n) is int for n in numbers):
      raise ValueError('a shape or stride that is no tuple of integers')
  if len(shape) != len(stride) or len(shape) > _MOST_AXES:
    raise ValueError(f'a tensor of {len(shape)} axes and {len(stride)} strides')
  untrusted.checked_size(shape, storage.dtype)
  if offset < 0 or min(stride, default=0) < 0:
    raise ValueError(f'a tensor of shape {shape}, stride {stride}')
  result = _Tensor(storage, offset, shape, stride)
  steps = zip(shape, stride, strict=True)
  last = offset + sum((size - 1) * step for size, step in steps)
  if result.size and last >= storage.count:
    raise ValueError(f'a tensor of shape {shape} reaches beyond its bytes')
  if result.size > storage.count:
    raise ValueError(f'a tensor of shape {shape} repeats its bytes')
  return result


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
