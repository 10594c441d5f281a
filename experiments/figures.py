"""Draws what finished runs found, and compares architectures at matched L0.

  python -m experiments.figures --runs=runs/a,runs/b --out=figures

Reads each run's results.csv and its SAEs' folders: any number of seeds, layers,
sites, architectures and objectives. Writes each figure as PNG and PDF with the
numbers drawn as CSV, and comparison.csv (`jumprelu_jax/comparison.py` says
how); prints the comparison's losses. What the runs do not hold is left out with
a line. Runs of several models, sizes or lengths get a folder each.
"""

import pathlib
import re

from absl import flags

from experiments import launch
from jumprelu_jax import comparison
from jumprelu_jax import errors
from jumprelu_jax import finished
from jumprelu_jax import progress
from jumprelu_jax import results
from jumprelu_jax.plot import catalogue

_RUNS = flags.DEFINE_list('runs', None, "Runs' folders.", required=True)
_OUT = flags.DEFINE_string('out', None, 'Folder to write to.', required=True)
_REFERENCE = flags.DEFINE_string(
  'reference', 'jumprelu', 'ARCHITECTURE[/OBJECTIVE] to compare with.'
)
_L0 = flags.DEFINE_list(
  'l0', [], 'L0s to compare at; by default 1, 2, 5, 10, … that were measured.'
)
# Columns that are printed, of rows of these metrics.
_COLUMNS = (
    *finished.PLACE, *finished.KIND, 'metric', 'l0', 'value', 'difference',
    'low', 'high', 'interval', 'num_seeds',
)  # fmt: skip
_METRICS = ('delta_lm_loss', 'fvu')


def compare(rows, reference, l0s, out):
  """Writes comparison.csv and prints its losses."""
  table = comparison.save(rows, reference, out / 'comparison.csv', l0s)
  printed = [row for row in table if row['metric'] in _METRICS]
  several = len(finished.groups(rows, finished.SETTING)) > 1
  columns = (*finished.SETTING, *_COLUMNS) if several else _COLUMNS
  if printed:
    print(
      f'difference: value less that of {"/".join(reference)} at the same L0'
    )
    print(results.format_table(printed, columns))
  if any(row['interval'] == 'range' for row in table):
    print('range: of 2 or 3 seeds, which are too few for an interval of 95%')


def _l0s():
  try:
    l0s = [float(text) for text in _L0.value]
  except ValueError as error:
    raise errors.InputError(f'--l0={",".join(_L0.value)}: {error}.') from error
  if any(not l0 > 0 for l0 in l0s):
    raise errors.InputError(
      f'--l0={",".join(_L0.value)}: expected positive numbers.'
    )
  return l0s


def main():
  rows, l0s = finished.read(_RUNS.value), _l0s()
  reference = comparison.reference_of(rows, _REFERENCE.value)
  out = pathlib.Path(_OUT.value)
  if out.exists() and not out.is_dir():
    raise errors.InputError(f'--out={out} is no folder; give another name.')
  settings = finished.groups(rows, finished.SETTING)
  for setting, alike in settings.items():
    name = re.sub(r'[^\w.-]+', '_', '_'.join(map(str, setting)))
    folder = out if len(settings) == 1 else out / name
    catalogue.save(catalogue.of_runs(alike), folder)
  catalogue.save(catalogue.of_toys(), out)
  compare(rows, reference, l0s, out)
  progress.say(f'{out}: figures as png, pdf and csv; comparison.csv')


if __name__ == '__main__':
  launch.run(main)
