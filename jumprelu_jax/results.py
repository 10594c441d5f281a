"""The table of results: its columns, as CSV and for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
import csv
import io
import os

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


def write(rows: Sequence[dict[str, object]], path: str | os.PathLike) -> None:
  """Writes rows under COLUMNS; numbers to six digits, nothing for None."""
  text = io.StringIO()
  table = csv.writer(text, lineterminator='\n')
  table.writerow(COLUMNS)
  table.writerows([[_cell(row[name]) for name in COLUMNS] for row in rows])
  whole.write_text(path, text.getvalue())


def format_table(rows: Sequence[dict[str, object]]) -> str:
  """Returns the columns that matter most as text for a terminal."""
  names = (
      'architecture', 'objective', 'sparsity_coeff', 'k', 'l0', 'fvu',
      'delta_lm_loss', 'loss_recovered', 'dead_fraction', 'l0_settled',
  )  # fmt: skip
  cells = [names] + [
    tuple(
      f'{row[name]:.4g}' if isinstance(row[name], float) else _shown(row[name])
      for name in names
    )
    for row in rows
  ]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  return '\n'.join(
    '  '.join(cell.rjust(w) for cell, w in zip(line, widths, strict=True))
    for line in cells
  )


def _shown(value):
  return '-' if value is None else str(value)


def _cell(value):
  if value is None:
    return ''
  return f'{value:.6g}' if isinstance(value, float) else value
