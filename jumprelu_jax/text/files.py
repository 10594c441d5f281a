"""Files of text: which ones a path means, and the format that they are in."""

from __future__ import annotations

import glob
import importlib
import importlib.util
import os
from typing import TextIO

from jumprelu_jax import errors

# What a file's name ends in → the reader of `datasets` for it.
_FORMATS = {
  '.jsonl': 'json',
  '.json': 'json',
  '.txt': 'text',
  '.parquet': 'parquet',
  '.arrow': 'arrow',
}
# The other formats are read by seeking, and are compressed inside.
_MAY_BE_COMPRESSED = ('json', 'text')
# What a compressed file's name ends in → the module whose `open` reads it.
_COMPRESSIONS = {
  '.gz': 'gzip',
  '.xz': 'lzma',
  '.bz2': 'bz2',
  '.zst': 'zstandard',
}


def find(path: str) -> tuple[str, list[str]]:
  """Returns the format of a path, a folder or a pattern, and its files by name.

  Args:
    path: a file; a folder, of which the files of a known format are taken, in
      its folders too; or a pattern as of `glob`, where `**` matches folders.

  Raises:
    errors.InputError: there is no file, one is empty, or their format is
      unknown or not the same.
  """
  found = _files(path)
  for file in found:
    if os.path.getsize(file) == 0:
      raise errors.InputError(
        f'text file {file} is empty; give one with documents.'
      )
  format_name = _common_format(found, path)
  is_zstandard = any(file.lower().endswith('.zst') for file in found)
  if is_zstandard and not importlib.util.find_spec('zstandard'):
    raise errors.InputError(
      f'text {path} is compressed by Zstandard; pip install zstandard.'
    )
  return format_name, found


def open_text(file: str) -> TextIO:
  """Opens a file of plain text, decompressed by its suffix; UTF-8."""
  suffix = os.path.splitext(file.lower())[1]
  if suffix not in _COMPRESSIONS:
    return open(file, encoding='utf-8')
  module = importlib.import_module(_COMPRESSIONS[suffix])
  return module.open(file, 'rt', encoding='utf-8')


def _files(path):
  if os.path.isfile(path):
    return [path]
  if os.path.isdir(path):
    inside = os.path.join(glob.escape(path), '**', '*')
    found = glob.glob(inside, recursive=True)
    # A card, a licence or a script may lie beside the text.
    found = [file for file in found if os.path.isfile(file) and _format(file)]
    missing = f'folder {path} holds no text; give'
  else:
    found = glob.glob(path, recursive=True)
    found = [file for file in found if os.path.isfile(file)]
    missing = f'{path} does not exist; give'
  if not found:
    raise errors.InputError(
      f'text {missing} a .jsonl file, another that ends in '
      f'{", ".join(_FORMATS)}, a folder or a pattern of them, or '
      'hf://datasets/OWNER/NAME.'
    )
  return sorted(found)


def _format(file):
  """Returns the reader's name for a file's name; '' if there is none."""
  stem, suffix = os.path.splitext(file.lower())
  if suffix not in _COMPRESSIONS:
    return _FORMATS.get(suffix, '')
  inner = _FORMATS.get(os.path.splitext(stem)[1], '')
  return inner if inner in _MAY_BE_COMPRESSED else ''


def _common_format(found, path):
  names = {_format(file) for file in found}
  if '' in names:
    raise errors.InputError(
      f'text {path} is in a format that its name does not tell; give files '
      f'that end in {", ".join(_FORMATS)} ({", ".join(_MAY_BE_COMPRESSED)} '
      f'also compressed: {", ".join(_COMPRESSIONS)}).'
    )
  if len(names) > 1:
    raise errors.InputError(
      f'text {path} holds files of several formats ({", ".join(sorted(names))}'
      '); give a pattern that matches one, e.g. folder/*.parquet.'
    )
  return names.pop()
