"""Studies at a small budget: ablations, comparisons, a yardstick from outside.

  python -m experiments.small_budget --config=configs/quickstart.py \
      --workdir=DIR --study=ablation --out=docs/small_budget_ablation.csv

Trains variants of a recipe on one store of activations and writes a row for
each SAE; `studies` says which. `--study=saelens` trains SAELens' JumpReLU on
the same batches in the same order (in an environment that has `pip install
torch==2.13.0 sae-lens==6.54.12` beside this package). A
finished SAE in the workdir is not trained again. With `--against=OTHER.csv`,
each of that table's SAEs is then held against this study's, interpolated to its
L0.
"""

import csv
import json
import pathlib
import time

from absl import flags

from experiments import launch
from experiments.small_budget import studies
from jumprelu_jax import comparison
from jumprelu_jax import evaluation
from jumprelu_jax import export
from jumprelu_jax import inputs as inputs_lib
from jumprelu_jax import loop
from jumprelu_jax import progress
from jumprelu_jax import results
from jumprelu_jax import run_folder
from jumprelu_jax import supply
from jumprelu_jax import whole
from jumprelu_jax import writer

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder.', required=True)
_STUDY = flags.DEFINE_enum(
  'study', 'ablation', list(studies.STUDIES), 'What to train.'
)
_OUT = flags.DEFINE_string('out', None, 'CSV to write.', required=True)
_AGAINST = flags.DEFINE_string('against', None, 'CSV of another study.')


def row_of(case, inputs, store, folder):
  """Trains and evaluates one SAE, unless its folder holds its row."""
  path = folder / 'row.json'
  if path.exists():
    return json.loads(path.read_text())
  folder.mkdir(parents=True, exist_ok=True)
  began = time.monotonic()
  run = case.run
  sae = case.trainer(run, inputs, store, folder)
  seconds = time.monotonic() - began
  export.save_npz(sae, folder / export.FILE_NAME)
  metrics = evaluation.evaluate(sae, inputs.setting, inputs.baseline)
  row = {
      'study': _STUDY.value,
      'variant': case.variant,
      'seed': run.seed,
      'sparsity_coeff': run.objective.sparsity_coeff,
      **{key: metrics[key] for key in
         ('l0', 'fvu', 'delta_lm_loss', 'dead_fraction')},
      'l0_settled': loop.l0_is_settled(
          writer.read_curve(folder), run.train.steps
      ),
      'seconds': round(seconds),
  }  # fmt: skip
  whole.write_json(path, row)  # its SAE is not trained again
  return row


def fvu_at(l0, rows):
  """Interpolates FVU on log L0 along a Pareto front of rows.

  Returns:
    FVU at l0, or None outside the rows' range.
  """
  front = []
  for row in sorted(rows, key=lambda row: row['l0']):
    if not front or row['fvu'] < front[-1]['fvu']:
      front.append(row)
  l0s, fvus = zip(*((row['l0'], row['fvu']) for row in front), strict=True)
  return comparison.Front(l0s, fvus).at(l0)


def compare(ours, theirs):
  """Prints each of their SAEs beside our fronts, by variant, at its L0."""
  variants = sorted({row['variant'] for row in ours})
  print('variant,l0,fvu,dead_fraction,' + ','.join(variants) + ',all')
  for row in theirs:
    fronts = [[o for o in ours if o['variant'] == v] for v in variants] + [ours]
    cells = [fvu_at(row['l0'], front) for front in fronts]
    shown = ['' if cell is None else f'{cell:.4f}' for cell in cells]
    figures = f'{row["l0"]:.2f},{row["fvu"]:.4f},{row["dead_fraction"]:.4f}'
    print(f'{row["variant"]},{figures},{",".join(shown)}')


def main():
  run = launch.run_config()
  prepared = inputs_lib.prepare(run)
  workdir = pathlib.Path(_WORKDIR.value)
  run_folder.claim(workdir, run)
  store = supply.open_shards(prepared, workdir)
  rows = []
  for case in studies.STUDIES[_STUDY.value](run):
    coeff, seed = case.run.objective.sparsity_coeff, case.run.seed
    name = f'{_STUDY.value}_{case.variant}_{coeff:g}_{seed}'.replace('/', '_')
    rows.append(row_of(case, prepared, store, workdir / name))
    with open(_OUT.value, 'w', newline='') as file:
      table = csv.DictWriter(file, rows[0], lineterminator='\n')
      table.writeheader()
      table.writerows(rows)
    progress.say(str(rows[-1]))
  if _AGAINST.value:
    compare(rows, results.read(_AGAINST.value, needed=()))


if __name__ == '__main__':
  launch.run(main)
