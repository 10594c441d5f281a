"""What finished runs left: their tables, joined with their SAEs' folders."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import os
import pathlib

import numpy as np

from jumprelu_jax import errors
from jumprelu_jax import json_files
from jumprelu_jax import results
from jumprelu_jax import seals

Row = Mapping[str, object]

#: What SAEs must share to be held against each other.
SETTING = ('model', 'num_latents', 'tokens', 'steps')
#: Where in a model an SAE is.
PLACE = ('layer', 'site')
# Of an SAE's folder; its weights are not read here.
_READ = ('evaluation.json', 'latents.npz', 'metrics.jsonl')
#: What a line of a figure is drawn for.
KIND = ('architecture', 'objective')


def read(folders: Sequence[str | os.PathLike]) -> list[dict[str, object]]:
  """Reads the tables of several run folders as one.

  Returns:
    Rows as `results.read`, with what else is in an SAE's evaluation.json, and
    with `folder`: the SAE's, or None where the run's folder has none for a row.

  Raises:
    errors.InputError: a folder has no readable results.csv, an evaluation.json
      is damaged, or an SAE is there twice.
  """
  rows = [row for folder in folders for row in _read_one(pathlib.Path(folder))]
  seen = {}
  for row in rows:
    key = results.identity(row)
    if key in seen:
      raise errors.InputError(
        f'--runs={",".join(map(str, folders))}: {", ".join(filter(None, key))} '
        'is there twice; give runs that differ in a column before l0, such as '
        'the seed.'
      )
    seen[key] = row
  return rows


def groups(rows: Iterable[Row], names: Sequence[str]) -> dict[tuple, list[Row]]:
  """Returns rows by their values of some columns, in order of these values."""
  found = {}
  for row in rows:
    found.setdefault(tuple(row[name] for name in names), []).append(row)
  return dict(sorted(found.items()))


def number(row: Row, name: str) -> float | None:
  """Returns a metric, None where a row has none or it is not finite."""
  value = row.get(name)
  is_number = isinstance(value, (int, float)) and np.isfinite(value)
  return float(value) if is_number else None


def frequency_M(row: Row) -> np.ndarray | None:  # noqa: N802 (an array's name)
  """Returns how often each latent fires on held-out text, a share of positions.

  None where the SAE's folder has no latents.npz with `frequency_M`.

  Raises:
    errors.InputError: the file is damaged.
  """
  path = row['folder'] and row['folder'] / 'latents.npz'
  if not path or not path.is_file():
    return None
  try:
    with np.load(path) as file:
      return file.get('frequency_M')
  except errors.OF_DAMAGED_ARRAYS as error:
    raise errors.InputError(
      f'{path} is damaged ({error}); remove it, or have it written again.'
    ) from error


def _read_one(folder):
  """Returns the rows of one run's folder."""
  rows = results.read(folder / 'results.csv')
  saes = {}
  for path in sorted(folder.glob('*/evaluation.json')):
    _check_seal(path.parent)
    evaluation = _read_json(path)
    saes[results.identity(evaluation)] = (evaluation, path.parent)
  joined = []
  for row in rows:
    evaluation, there = saes.pop(results.identity(row), ({}, None))
    _check_agree(folder / 'results.csv', row, evaluation)
    more = {k: v for k, v in evaluation.items() if k not in row}
    joined.append({**row, **more, 'folder': there})
  strangers = [row for row in joined if row['folder'] is None]
  if strangers and saes:
    raise errors.InputError(
      f'{folder / "results.csv"} has a row of '
      f'{", ".join(filter(None, results.identity(strangers[0])))}, which no '
      'SAE there is, and lacks one that is; give the command of its run again, '
      'which writes the table anew.'
    )
  return joined


def _check_agree(path, row, evaluation):
  """Raises InputError where a table's cell is not what was measured."""
  unknown = row.keys() - evaluation.keys() - set(results.COLUMNS)
  if evaluation and unknown:
    raise errors.InputError(
      f'{path} has the column {min(unknown)}, which nothing has measured; '
      'give the command of its run again, which writes the table anew.'
    )
  for name in row.keys() & evaluation.keys() & set(results.COLUMNS):
    there, measured = (results.cell(r[name]) for r in (row, evaluation))
    if there != measured:
      raise errors.InputError(
        f'{path}: {name}={there} where evaluation.json of '
        f'{", ".join(filter(None, results.identity(row)))} has {measured}; '
        'give the command of its run again, which writes the table anew.'
      )


def _check_seal(folder):
  """Raises InputError if a sealed file that figures read is damaged."""
  seals.check(
    folder,
    f'Restore that file; or remove {folder / seals.NAME} and give the command '
    'of its run again.',
    _READ,
  )


def _read_json(path):
  try:
    value = json_files.parse(path.read_text())
  except ValueError as error:
    raise errors.InputError(
      f'{path} is not JSON ({error}); remove it and give the command of its '
      'run again.'
    ) from error
  if not isinstance(value, dict):
    raise errors.InputError(
      f'{path} holds no metrics; remove it and give the command of its run '
      'again.'
    )
  return value
