"""Scores of an SAE's latents on disk, and what they come to.

OUT/scores.parquet, scores.csv   a row for each latent
OUT/seal.json                    checksums of these, and what summary.json says
OUT/summary.json                 the averages, and what they are of; last
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import os
import pathlib

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from jumprelu_jax import errors
from jumprelu_jax import json_files
from jumprelu_jax import results
from jumprelu_jax import seals
from jumprelu_jax import whole
from jumprelu_jax.autointerp import reasons
from jumprelu_jax.autointerp import scores as scores_lib

Row = Mapping[str, object]

#: Scores above it are called high (section 7.2 of the paper).
HIGH = 0.9
_SCORES, _CSV, _SUMMARY = 'scores.parquet', 'scores.csv', 'summary.json'


@dataclasses.dataclass(frozen=True)
class Scores:
  """The scores of one SAE.

  Attributes:
    folder: where they are.
    about: summary.json.
    rows: of scores.parquet.
  """

  folder: pathlib.Path
  about: Mapping[str, object]
  rows: Sequence[Row]

  def of(self, measure: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scores that latents have, and these latents' frequencies."""
    found = [row for row in self.rows if row.get(measure) is not None]
    values = np.array([row[measure] for row in found], float)
    return values, np.array([row['frequency'] for row in found], float)


def schema(measures: Sequence[str]) -> pa.Schema:
  """Returns the columns of scores.parquet."""
  columns = [('latent', pa.int32()), ('frequency', pa.float64())]
  for name in measures:
    columns += [(name, pa.float64()), (f'{name}_reason', pa.string())]
  return pa.schema(
    [*columns, ('explanation', pa.string()), ('detail', pa.string())]
  )


def write(
  folder: str | os.PathLike,
  rows: Sequence[Row],
  measures: Sequence[str],
  about: Mapping[str, object],
) -> Mapping[str, object]:
  """Writes the files of a folder; returns what summary.json holds.

  Args:
    folder: where to.
    rows: of `study.run`.
    measures: that the rows have.
    about: what summary.json holds besides the averages.
  """
  folder, columns = pathlib.Path(folder), schema(measures)
  with whole.replacing(folder / _SCORES) as file:
    parquet.write_table(pa.Table.from_pylist(list(rows), columns), file)
  results.write(rows, folder / _CSV, columns.names)
  about = {
    **about,
    'scores': {name: summarise(rows, name) for name in measures},
  }
  seals.write(folder, about, [_SCORES, _CSV])
  whole.write_json(folder / _SUMMARY, about)
  return about


def summarise(rows: Sequence[Row], measure: str) -> dict[str, object]:
  """Returns a measure's averages over latents, and why others have no score.

  scored, mean with low and high, weighted_mean (by frequency) likewise, and
  above_0.9, a share of the scored; numbers are None where none is scored.
  """
  found = [row for row in rows if row[measure] is not None]
  counts = {}
  for row in rows:
    if row[measure] is None:
      reason = row[f'{measure}_reason']
      counts[reason] = counts.get(reason, 0) + 1
  names = ('mean', 'low', 'high')
  summary = {'scored': len(found), 'latents': len(rows)}
  summary |= dict.fromkeys((*names, *(f'weighted_{n}' for n in names)))
  summary |= {'above_0.9': None, 'reasons': counts}
  if not found:
    return summary
  values = np.array([row[measure] for row in found])
  weights = np.array([row['frequency'] for row in found])
  plain = scores_lib.average(values, np.ones_like(weights))
  weighted = scores_lib.average(values, weights)
  summary |= dict(zip(names, plain, strict=True))
  summary |= {f'weighted_{n}': v for n, v in zip(names, weighted, strict=True)}
  return summary | {'above_0.9': float((values > HIGH).mean())}


def read(folder: str | os.PathLike) -> Scores:
  """Reads what `write` wrote.

  Raises:
    errors.InputError: it is not there, or damaged.
  """
  folder = pathlib.Path(folder)
  if not (folder / _SUMMARY).is_file():
    raise errors.InputError(
      f'{folder} holds no {_SUMMARY}; give a folder that '
      '`experiments.autointerp score` has finished.'
    )
  try:
    about = json_files.parse_object((folder / _SUMMARY).read_bytes())
    seals.check(folder, 'Score its records again.', about=about)
    rows = parquet.read_table(folder / _SCORES).to_pylist()
    about['scores'], about['architecture'], about['l0']  # must be there
  except errors.InputError:
    raise
  except (ValueError, KeyError, TypeError, OSError, RecursionError,
          pa.ArrowException) as error:  # fmt: skip
    raise errors.InputError(
      f'{folder} is damaged ({error}); score its records again.'
    ) from error
  return Scores(folder, about, rows)


def format_summary(about: Mapping[str, object]) -> str:
  """Returns the averages for a terminal, and the reasons below."""
  shown = (
    'measure', 'scored', 'latents', 'mean', 'low', 'high', 'weighted_mean',
    'weighted_low', 'weighted_high', 'above_0.9',
  )  # fmt: skip
  found = about['scores']
  rows = [{'measure': name, **summary} for name, summary in found.items()]
  lines = [results.format_table(rows, shown)]
  for name, summary in found.items():
    for reason, count in sorted(summary['reasons'].items()):
      meaning = reasons.REASONS[reason]
      lines.append(f'{name}: {count:,} latents {reason}: {meaning}')
  return '\n'.join(lines)
