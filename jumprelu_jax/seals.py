"""Checksums: of a folder's files, of a JSON object, of a row.

Those of files are in a file beside them that is written last.
"""

from __future__ import annotations

from collections.abc import Sequence
import json
import os
import pathlib
from typing import Any

import xxhash

from jumprelu_jax import errors
from jumprelu_jax import json_files
from jumprelu_jax import whole

NAME = 'seal.json'
_VERSION = 1
_PIECE_BYTES = 16 << 20


class BrokenSealError(ValueError):
  """A folder is not what was sealed; says which file, what and how.

  Attributes:
    path: of the file.
  """

  def __init__(self, path: pathlib.Path, problem: str):
    super().__init__(f'{path} {problem}')
    self.path = path


def write(
  folder: str | os.PathLike, about: Any, names: Sequence[str] | None = None
) -> None:
  """Seals files of a folder that are complete, once they are on the disk.

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
  parents = {parent for p in paths for parent in p.relative_to(folder).parents}
  for path in (*paths, *(folder / parent for parent in parents)):
    whole.sync(path)
  content = {'version': _VERSION, 'files': files, 'about': about}
  whole.write_json(folder / NAME, signed(content))


def read(
  folder: str | os.PathLike,
  names: Sequence[str] | None = None,
  optional: Sequence[str] = (),
) -> Any:
  """Returns what was written about a folder whose files are as they were.

  Files that were added are no matter.

  Args:
    folder: as it was sealed.
    names: reads only these of its sealed files; None reads all.
    optional: files that may have been removed, but not changed.

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
      if name in optional:
        continue
      raise BrokenSealError(path, 'is missing')
    if path.stat().st_size != size:
      raise BrokenSealError(
        path, f'has {path.stat().st_size:,} bytes, expected {size:,}'
      )
    found = digest(path)
    if found != expected:
      raise BrokenSealError(path, f'has checksum {found}, expected {expected}')
  return content['about']


def check(
  folder: str | os.PathLike,
  remedy: str,
  names: Sequence[str] | None = None,
  optional: Sequence[str] = (),
  about: Any = None,
) -> None:
  """Checks a folder if it has a seal; those of other origin have none.

  Args:
    folder: sealed or not.
    remedy: what to do about damage, a sentence.
    names: as `read`.
    optional: as `read`.
    about: what a file that is not under the seal itself says, which the seal
      must say too; None for no such file.

  Raises:
    errors.InputError: a file is not what was sealed.
  """
  if not (pathlib.Path(folder) / NAME).exists():
    return
  try:
    sealed = read(folder, names, optional)
  except BrokenSealError as error:
    raise errors.InputError(
      f'{folder} is damaged: {error}. {remedy}'
    ) from error
  if about is not None and sealed != about:
    raise errors.InputError(
      f'{folder} is damaged: {NAME} is of other files. {remedy}'
    )


def is_sealed(folder: str | os.PathLike, name: str) -> bool:
  """True if a folder has a seal that a file is under; neither is checked."""
  path = pathlib.Path(folder) / NAME
  try:
    return name in json_files.parse_object(path.read_bytes())['files']
  except (FileNotFoundError, NotADirectoryError):
    return False
  except (ValueError, KeyError, TypeError):
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


def line(*values: Any) -> str:
  """Returns the checksum of values that are kept as a line or row."""
  # A damaged database may hold bytes in place of text: no checksum of ours.
  return xxhash.xxh3_128_hexdigest(json.dumps(values, default=repr).encode())


def digest(path: str | os.PathLike) -> str:
  """Returns the XXH3-128 of a file's bytes."""
  state = xxhash.xxh3_128()
  with pathlib.Path(path).open('rb') as file:
    while piece := file.read(_PIECE_BYTES):
      state.update(piece)
  return state.hexdigest()


def _read_seal(path):
  if not path.is_file():
    raise BrokenSealError(path, 'is missing')
  try:
    content = check_signed(json_files.parse_object(path.read_bytes()))
    version = content['version']
    for name, (_, _) in content['files'].items():
      # It may come from elsewhere, and speaks of its own folder alone.
      if pathlib.PurePath(name).is_absolute() or '..' in name.split('/'):
        raise ValueError(f'{name!r} is not in its folder')
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise BrokenSealError(path, f'is damaged ({error})') from error
  if version != _VERSION:
    raise BrokenSealError(path, f'is of version {version}, expected {_VERSION}')
  return content


def _canonical(content):
  return json.dumps(content, sort_keys=True).encode()
