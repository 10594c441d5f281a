"""The table of results: its columns, as CSV and for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import csv
import io
import os
import pathlib

from jumprelu_jax import errors
from jumprelu_jax import whole

#: Columns of results.csv, in order.
COLUMNS = (
    'architecture', 'objective', 'sparsity_coeff', 'k', 'seed', 'model', 'site',
    'layer', 'd_model', 'num_latents', 'tokens', 'steps', 'l0', 'fvu',
    'delta_lm_loss', 'loss_clean', 'loss_spliced', 'loss_mean_ablated',
    'loss_recovered', 'dead_fraction', 'frac_over_1pct', 'frac_over_10pct',
    'relative_reconstruction_bias', 'l0_settled', 'loss_zero_ablated',
    'loss_recovered_zero', 'kl', 'cosine', 'explained_variance',
    'explained_variance_legacy', 'importance_uniformity',
)  # fmt: skip

#: Columns that tell one SAE from another.
IDENTITY = COLUMNS[: COLUMNS.index('l0')]

_NEEDED = (*IDENTITY, 'l0', 'l0_settled')
_TEXTS = ('architecture', 'objective', 'model', 'site')
_WHOLE = ('k', 'seed', 'layer', 'd_model', 'num_latents', 'tokens', 'steps')
_MAY_BE_EMPTY = ('sparsity_coeff', 'k')  # an SAE has one of the two
_SHOWN = (
    'architecture', 'objective', 'sparsity_coeff', 'k', 'l0', 'fvu',
    'fvu_without_top', 'top_variance_share', 'delta_lm_loss', 'loss_recovered',
    'dead_fraction', 'l0_settled',
)  # fmt: skip
# Of the variance, from which on fvu is that of a few positions.
_MOST_AT_THE_TOP = 0.5


def write(
  rows: Sequence[Mapping[str, object]],
  path: str | os.PathLike,
  columns: Sequence[str] = COLUMNS,
) -> None:
  """Writes rows' columns; numbers to six digits, nothing for None."""
  text = io.StringIO()
  table = csv.writer(text, lineterminator='\n')
  table.writerow(columns)
  table.writerows([[cell(row[name]) for name in columns] for row in rows])
  whole.write_text(path, text.getvalue())


def read(
  path: str | os.PathLike, needed: Sequence[str] = _NEEDED
) -> list[dict[str, object]]:
  """Reads a results.csv, of this or of an earlier set of metrics.

  Args:
    path: the file; or another table with columns of the same names.
    needed: columns that it must have.

  Returns:
    Rows with numbers as numbers, `l0_settled` as a bool and None for what is
    empty. Other columns are kept, with numbers as numbers.

  Raises:
    errors.InputError: it does not exist, has no rows, lacks a column that says
      what an SAE is, or a cell is not what its column asks for.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise errors.InputError(
      f'{path} does not exist; give a folder that experiments.sweep or '
      'experiments.train has finished.'
    )
  try:
    lines = list(csv.reader(io.StringIO(path.read_text('utf-8', 'replace'))))
  except csv.Error as error:
    raise errors.InputError(
      f'{path} is not CSV ({error}); give a results.csv as experiments.sweep '
      'writes it.'
    ) from error
  missing = [name for name in needed if name not in (lines or [[]])[0]]
  if missing:
    raise errors.InputError(
      f'{path} lacks the columns {", ".join(missing)}; give a results.csv as '
      'experiments.sweep writes it.'
    )
  if len(lines) < 2:
    raise errors.InputError(f'{path} has no rows; give a run with SAEs.')
  return [
    _read_row(lines[0], cells, f'{path}, line {number}')
    for number, cells in enumerate(lines[1:], start=2)
  ]


def identity(row: Mapping[str, object]) -> tuple[str, ...]:
  """Returns what tells a row's SAE from others, as results.csv writes it."""
  return tuple(str(cell(row.get(name))) for name in IDENTITY)


def format_table(
  rows: Sequence[Mapping[str, object]], names: Sequence[str] = _SHOWN
) -> str:
  """Returns columns, by default those that matter most, for a terminal."""
  cells = [tuple(names)] + [
    tuple(_shown(row.get(name)) for name in names) for row in rows
  ]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = [
    '  '.join(cell.rjust(w) for cell, w in zip(line, widths, strict=True))
    for line in cells
  ]
  if 'top_variance_share' in names and (share := _top_share(rows)):
    lines.append(
      'WARNING: 0.1% of the positions, those of the largest norms, have '
      f'{share:.1%} of the variance: fvu says little of the others, whose own '
      'is fvu_without_top. config.activations.max_norm_multiple=10 leaves out '
      'positions whose norm is more than ten times the median.'
    )
  return '\n'.join(lines)


def _top_share(rows):
  """Returns the largest share of the variance at the top, or 0 for a small.

  Where most norms are equal, the top is no small part.
  """
  shares = [
    row.get('top_variance_share') or 0
    for row in rows
    if 2 * row.get('top_positions', 0) < row.get('positions', 1)
  ]
  return max((share for share in shares if share > _MOST_AT_THE_TOP), default=0)


def _read_row(names, cells, where):
  """Returns one row; InputError if it does not fit the header."""
  if len(cells) != len(names):
    raise errors.InputError(
      f'{where}: {len(cells)} cells under {len(names)} columns; give the '
      'command of its run again, which writes the table anew.'
    )
  row = {}
  for name, cell in zip(names, cells, strict=True):
    try:
      row[name] = _value(name, cell)
    except ValueError as error:
      raise errors.InputError(
        f'{where}: {name}={cell!r}; expected {_expected(name)}.'
      ) from error
  return row


def _value(name, cell):
  """Returns a cell's value; ValueError if it is not what its column holds."""
  if name in _TEXTS:
    return cell
  if name == 'l0_settled':
    if cell not in ('True', 'False'):
      raise ValueError(cell)
    return cell == 'True'
  if cell == '' and (name in _MAY_BE_EMPTY or name not in _NEEDED):
    return None
  if name in _WHOLE:
    return int(cell)
  try:
    return float(cell)
  except ValueError:
    if name in COLUMNS:
      raise
    return cell  # of a column that this version does not know


def _expected(name):
  if name == 'l0_settled':
    return 'True or False'
  return 'a whole number' if name in _WHOLE else 'a number'


def _shown(value):
  if value is None:
    return '-'
  return f'{value:.4g}' if isinstance(value, float) else str(value)


def cell(value: object) -> str:
  """Returns a value as results.csv writes it."""
  if value is None:
    return ''
  return f'{value:.6g}' if isinstance(value, float) else str(value)
