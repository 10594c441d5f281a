"""Reads weights: safetensors files → slices of our arrays."""

from __future__ import annotations

import dataclasses
import os
import pathlib

import jax
import numpy as np
import safetensors

from jumprelu_jax import errors
from jumprelu_jax import json_files
from jumprelu_jax.lm import hf_names
from jumprelu_jax.lm import transformer
from jumprelu_jax.lm.architecture import Architecture

_WEIGHTS = 'model.safetensors'
_INDEX = 'model.safetensors.index.json'
# Of one model; the largest have some hundred.
_MOST_FILES = 2000
_DTYPES = ('F64', 'F32', 'F16', 'BF16')
# Of embedding and head that are compared at a time.
_ROWS = 4096


class Weights:
  """A folder's safetensors files, opened when first read; a context manager."""

  def __init__(self, folder: str | os.PathLike, architecture: Architecture):
    """Reads the files' headers; InputError if they are missing or damaged."""
    self._folder = pathlib.Path(folder)
    self._architecture = architecture
    self._sizes = architecture.sizes() | {'X': 3}
    self._files = {}
    self._file_of = self._list_tensors()
    self._cuts = self._spelled_as_in_file()

  def __enter__(self) -> Weights:
    return self

  def __exit__(self, *exception) -> None:
    self._files.clear()

  def check(self) -> None:
    """Raises InputError unless the files hold the model and nothing else."""
    model = transformer.shapes(self._architecture)
    names = [f.name for f in dataclasses.fields(model.blocks)]
    expected = {}
    for name in (n for n in names if getattr(model.blocks, n) is not None):
      for layer in range(self._architecture.num_layers):
        cut = self._cuts[name]
        expected[cut.name.format(layer)] = cut.file_shape(self._sizes)
    for name in (n for n in self._cuts if n not in names):
      if getattr(model, name) is not None:
        cut = self._cuts[name]
        expected[cut.name] = cut.file_shape(self._sizes)
    for name, shape in expected.items():
      self._check_tensor(name, shape)
    self._check_no_other(expected)

  def has_own_head(self) -> bool:
    """True where the files hold a head that is not the embedding.

    Of a model whose config.json says that they are one, transformers keeps it.
    """
    embed, head = (self._cuts[n].name for n in ('embed_VD', 'head_VD'))
    if head not in self._file_of or embed not in self._file_of:
      return False
    views = [self._open(name).get_slice(name) for name in (embed, head)]
    shapes = [tuple(view.get_shape()) for view in views]
    if shapes[0] != shapes[1] or len(shapes[0]) != 2:
      return True
    if any(view.get_dtype() not in _DTYPES for view in views):
      return True  # which `check` refuses
    for start in range(0, shapes[0][0], _ROWS):
      rows = slice(start, min(start + _ROWS, shapes[0][0]))
      ours, theirs = (np.asarray(view[rows], np.float32) for view in views)
      if not np.array_equal(ours, theirs):
        return True
    return False

  def read(
    self,
    name: str,
    is_stacked: bool,
    leaf: jax.ShapeDtypeStruct,
    index: tuple[slice, ...],
  ) -> np.ndarray:
    """Returns a slice of one of our arrays, in its dtype."""
    cut, letters = self._cuts[name], name.rsplit('_', 1)[1]

    def read_one(tensor, index):
      view = self._open(tensor).get_slice(tensor)
      value = cut.read(lambda s: view[s], letters, index, self._sizes)
      return value.astype(leaf.dtype)

    if not is_stacked:
      return read_one(cut.name, index)
    layers = range(leaf.shape[0])[index[0]]
    shape = [len(range(n)[s]) for n, s in zip(leaf.shape, index, strict=True)]
    result = np.empty(shape, leaf.dtype)
    for i, layer in enumerate(layers):
      result[i] = read_one(cut.name.format(layer), index[1:])
    return result

  def _list_tensors(self):
    """Returns {tensor: file} of one file, or of an index of several."""
    index = self._folder / _INDEX
    if index.is_file() and not (self._folder / _WEIGHTS).is_file():
      named = load_json(index).get('weight_map')
      if not isinstance(named, dict):
        raise errors.InputError(f'{index} has no "weight_map".')
      files = {self._inside(index, file) for file in named.values()}
    else:
      files = {_WEIGHTS}
    if len(files) > _MOST_FILES:
      raise errors.InputError(
        f'{index} names {len(files):,} files; expected at most {_MOST_FILES:,}.'
      )
    return {
      tensor: file
      for file in sorted(files)
      for tensor in self._open_file(file).keys()  # noqa: SIM118
    }

  def _inside(self, index, file):
    """Refuses names that lead out of the folder."""
    if not isinstance(file, str) or pathlib.PurePath(file).name != file:
      raise errors.InputError(
        f'{index}: {file!r} is not the name of a file beside it.'
      )
    return file

  def _spelled_as_in_file(self):
    """Returns the family's cuts under the prefix that the files use."""
    model_type = self._architecture.model_type
    cuts = hf_names.NAMES[model_type]
    prefix, others = hf_names.PREFIXES.get(model_type, ('', ()))
    embed = cuts['embed_VD'].name
    for other in others:
      if other + embed.removeprefix(prefix) in self._file_of:
        return {
          name: dataclasses.replace(
            cut, name=other + cut.name.removeprefix(prefix)
          )
          if cut.name.startswith(prefix)
          else cut
          for name, cut in cuts.items()
        }
    return cuts

  def _check_tensor(self, name, shape):
    if name not in self._file_of:
      raise errors.InputError(f'{self._folder}/{_WEIGHTS} lacks tensor {name}.')
    file = self._file_of[name]
    view = self._open(name).get_slice(name)
    got, dtype = tuple(view.get_shape()), view.get_dtype()
    if dtype not in _DTYPES:
      raise errors.InputError(
        f'{self._folder}/{file}: {name} has dtype {dtype}, expected one of '
        f'{", ".join(_DTYPES)}; quantised weights are not read, give the '
        'folder of the model as it was before.'
      )
    if got != shape:
      raise errors.InputError(
        f'{self._folder}/{file}: {name} has shape {got}, expected {shape} '
        f'from config.json.'
      )

  def _check_no_other(self, expected):
    """A tensor that we do not use is a computation that we do not do."""
    is_tied = 'head_VD' not in self._architecture.optional
    tied = {self._cuts['head_VD'].name} if is_tied else set()
    unknown = [
      name
      for name in sorted(self._file_of.keys() - expected.keys() - tied)
      if not hf_names.IGNORED.search(name)
    ]
    if unknown:
      raise errors.InputError(
        f'{self._folder}: {len(unknown)} tensors are not part of a '
        f'{self._architecture.model_type} model as config.json describes it: '
        f'{", ".join(unknown[:3])}{", …" if len(unknown) > 3 else ""}; is the '
        'config of these weights?'
      )

  def _open(self, tensor):
    return self._open_file(self._file_of[tensor])

  def _open_file(self, file):
    if file not in self._files:
      path = existing(self._folder / file)
      try:
        self._files[file] = safetensors.safe_open(path, framework='np')
      except (safetensors.SafetensorError, OSError) as error:
        raise errors.InputError(
          f'{path} is damaged or truncated ({error}); get the file again.'
        ) from error
    return self._files[file]


def are_there(folder: pathlib.Path) -> bool:
  """Returns whether a folder holds weights."""
  return any((folder / name).is_file() for name in (_WEIGHTS, _INDEX))


def existing(path: pathlib.Path) -> pathlib.Path:
  """Returns a path of a model folder; InputError if it is no file."""
  if not path.is_file():
    raise errors.InputError(f'{path} does not exist; a model folder needs one.')
  return path


def load_json(path: pathlib.Path) -> dict:
  """Reads one JSON object of a model folder."""
  try:
    return json_files.read_object(existing(path))
  except ValueError as error:
    raise errors.InputError(
      f'{path} is not a JSON object ({error}).'
    ) from error
