"""Compares architectures by their latents' scores, at matched L0.

  python -m experiments.autointerp compare --scores=A,B,C --out=TABLES

Writes averages.csv, odds.csv, the figure scores.png and .pdf with its table,
and prints the tables.
"""

import pathlib

from absl import flags

from jumprelu_jax import errors
from jumprelu_jax import progress
from jumprelu_jax import results
from jumprelu_jax.autointerp import compare
from jumprelu_jax.plot import autointerp as plot
from jumprelu_jax.plot import style

_SCORES = flags.DEFINE_list(
  'scores', None, 'Folders of `score`.', required=True
)
_OUT = flags.DEFINE_string('out', None, 'Folder to write to.', required=True)
_REFERENCE = flags.DEFINE_string(
  'reference', 'jumprelu', 'Architecture that odds are of.'
)
_TOLERANCE = flags.DEFINE_float(
  'l0_tolerance', 0.15, 'L0s up to this share above the least are matched.'
)
_SHOWN = (
  'measure', 'l0_group', 'architecture', 'num_saes', 'scored', 'latents',
  'mean', 'low', 'high', 'weighted_mean', 'weighted_low', 'weighted_high',
  'interval', 'above_0.9',
)  # fmt: skip


def save_odds(saes, out):
  """Writes and prints the regression; says why where there is none."""
  measures = list(saes[0].about['scores'])
  correlations = [name for name in measures if name not in _ACCURACIES]
  rows = []
  try:
    for measure in correlations:
      rows += compare.odds(saes, measure, _REFERENCE.value)
  except ModuleNotFoundError as error:
    progress.say(
      f"no odds: they need {error.name}; pip install 'jumprelu-jax[interp]'"
    )
    return
  if rows:
    results.write(rows, out / 'odds.csv', compare.ODDS)
    print(f'odds of a score above 0.9: {_REFERENCE.value} over the others')
    print(results.format_table(rows, compare.ODDS))


# A share of right answers above 0.9 is not what section 7.2 asks for.
_ACCURACIES = ('detection', 'fuzzing')


def main():
  out = pathlib.Path(_OUT.value)
  if out.exists() and not out.is_dir():
    raise errors.InputError(f'--out={out} is no folder; give another name.')
  saes = compare.read(_SCORES.value)
  table = compare.table_of(saes, _TOLERANCE.value)
  out.mkdir(parents=True, exist_ok=True)
  results.write(table, out / 'averages.csv', compare.COLUMNS)
  print(results.format_table(table, _SHOWN))
  save_odds(saes, out)
  for place, rows in compare.by_place(table).items():
    name = 'scores' if len(compare.by_place(table)) == 1 else None
    model, layer, site, num_latents = place
    title = f'{model}, {num_latents:,} latents; {site} of layer {layer}'
    if any(row['mean'] is not None for row in rows):
      figure = plot.draw(rows, title)
      name = name or f'scores_{site}_{layer}_{num_latents}'
      style.save_with_table(figure, rows, out, name)
  progress.say(f'{out}: averages.csv, odds.csv, figures')
