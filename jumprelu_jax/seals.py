"""Checksums of a folder's files, in a file beside them that is written last."""

from __future__ import annotations

from collections.abc import Sequence
import json
import os
import pathlib
from typing import Any

import xxhash

from jumprelu_jax import json_files
from jumprelu_jax import whole

NAME = 'seal.json'
_VERSION = 1
_PIECE_BYTES = 16 << 20


class BrokenSealError(ValueError):
  """A folder is not what was sealed; says which file, what and how."""


def write(
  folder: str | os.PathLike, about: Any, names: Sequence[str] | None = None
) -> None:
  """Seals files of a folder that are complete.

  Args:
    folder: where they are.
    about: JSON to keep with them, sealed too.
    names: of the files; None takes all, also those in folders of it.
  """
  folder = pathlib.Path(folder)
  paths = [path for path in folder.rglob('*') if path.is_file()]
  if names is not None:
    paths = [folder / name for name in names]
  files = {
    str(path.relative_to(folder)): [path.stat().st_size, digest(path)]
    for path in sorted(paths)
    if path.name != NAME
  }
  content = {'version': _VERSION, 'files': files, 'about': about}
  whole.write_json(folder / NAME, signed(content))


def read(folder: str | os.PathLike, names: Sequence[str] | None = None) -> Any:
  """Returns what was written about a folder whose files are as they were.

  Files that were added are no matter.

  Args:
    folder: as it was sealed.
    names: reads only these of its sealed files; None reads all.

  Raises:
    BrokenSealError: there is no seal, or a file is not what was sealed.
  """
  folder = pathlib.Path(folder)
  content = _read_seal(folder / NAME)
  for name, (size, expected) in content['files'].items():
    if names is not None and name not in names:
      continue
    path = folder / name
    if not path.is_file():
      raise BrokenSealError(f'{path} is missing')
    if path.stat().st_size != size:
      raise BrokenSealError(
        f'{path} has {path.stat().st_size:,} bytes, expected {size:,}'
      )
    found = digest(path)
    if found != expected:
      raise BrokenSealError(f'{path} has checksum {found}, expected {expected}')
  return content['about']


def is_sealed(folder: str | os.PathLike, name: str) -> bool:
  """True if a folder has a seal that a file is under; neither is checked."""
  path = pathlib.Path(folder) / NAME
  try:
    return name in json_files.parse_object(path.read_bytes())['files']
  except (OSError, ValueError, KeyError, TypeError):
    return False


def signed(content: dict[str, Any]) -> dict[str, Any]:
  """Returns a JSON object with its checksum among its keys."""
  return {**content, 'checksum': xxhash.xxh3_128_hexdigest(_canonical(content))}


def check_signed(content: Any) -> dict[str, Any]:
  """Returns what was `signed`; raises ValueError if it is not that."""
  if not isinstance(content, dict) or 'checksum' not in content:
    raise ValueError('it has no checksum')
  rest = {k: v for k, v in content.items() if k != 'checksum'}
  if signed(rest) != content:
    raise ValueError('its checksum is not that of its content')
  return rest


def digest(path: str | os.PathLike) -> str:
  """Returns the XXH3-128 of a file's bytes."""
  state = xxhash.xxh3_128()
  with pathlib.Path(path).open('rb') as file:
    while piece := file.read(_PIECE_BYTES):
      state.update(piece)
  return state.hexdigest()


def _read_seal(path):
  if not path.is_file():
    raise BrokenSealError(f'{path} is missing')
  try:
    content = check_signed(json_files.parse_object(path.read_bytes()))
  except ValueError as error:
    raise BrokenSealError(f'{path} is damaged ({error})') from error
  if content['version'] != _VERSION:
    raise BrokenSealError(
      f'{path} is of version {content["version"]}, expected {_VERSION}'
    )
  return content


def _canonical(content):
  return json.dumps(content, sort_keys=True).encode()
