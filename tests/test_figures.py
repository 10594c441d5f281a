"""The command that draws figures and compares architectures."""

import csv
import pathlib
import shutil
import subprocess
import sys

from helpers import small_results
import pytest

pytestmark = pytest.mark.slow  # whole commands
ROOT = pathlib.Path(__file__).parent.parent
FRONTS = {
  'delta_lm_loss',
  'fvu',
  'frac_over_1pct',
  'frac_over_10pct',
  'relative_reconstruction_bias',
}
OF_PLACE = {
  'frequencies_resid_post_2',
  'curves_l0_resid_post_2',
  'curves_squared_error_resid_post_2',
}
TOYS = {'jumprelu_toy', 'estimator_toy'}


def draw(*args):
  return subprocess.run(
    [sys.executable, '-m', 'experiments.figures', *map(str, args)],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Two seeds' folders: JumpReLU, and TopK that is worse by 0.02 nats."""
  folder = tmp_path_factory.mktemp('runs')
  for seed in (0, 1):
    points = [(8, 0.3 + seed), (60, 0.1 + seed)]
    rows = small_results.front('delta_lm_loss', points, seed=seed)
    worse = [(l0, loss + 0.02) for l0, loss in points]
    topk = {'architecture': 'topk', 'objective': 'aux_k', 'seed': seed}
    rows += small_results.front('delta_lm_loss', worse, **topk)
    rows[1]['l0_settled'] = seed == 0
    small_results.write_run(folder / f'seed_{seed}', rows)
  return sorted(folder.iterdir())


def names(folder):
  return {path.name for path in folder.iterdir()}


def files_of(figures):
  return {
    f'{name}.{kind}' for name in figures for kind in ('png', 'pdf', 'csv')
  }


def test_all_that_is_in_the_runs_is_drawn_and_compared(runs, tmp_path):
  out = tmp_path / 'out' / 'figures'
  done = draw(f'--runs={runs[0]},{runs[1]}', f'--out={out}')
  assert done.returncode == 0, done.stderr
  expected = files_of(FRONTS | OF_PLACE | TOYS) | {'comparison.csv'}
  assert names(out) == expected
  assert 'importance_uniformity: left out: it is in 0 of 8 SAEs' in done.stderr
  assert 'jumprelu/l0: 1 of 4 runs left out' in done.stderr
  with (out / 'comparison.csv').open() as file:
    table = [
      row
      for row in csv.DictReader(file)
      if row['metric'] == 'delta_lm_loss' and row['l0'] == '20'
    ]
  (row,) = table
  assert (row['architecture'], row['reference']) == ('topk', 'jumprelu/l0')
  assert float(row['difference']) == pytest.approx(0.02, rel=1e-4)
  # The other seed's JumpReLU has one settled run: it measures no L0 but 8.
  assert (row['num_seeds'], row['interval'], row['low']) == ('1', '', '')
  assert 'difference: value less that of jumprelu/l0' in done.stdout
  assert any(
    line.split()[2:6] == ['topk', 'aux_k', 'delta_lm_loss', '20']
    for line in done.stdout.splitlines()
  )


def test_runs_of_two_models_get_a_folder_each(runs, tmp_path):
  other = tmp_path / 'other'
  rows = small_results.front('fvu', [(8, 0.3)], model='gpt2')
  small_results.write_run(other, rows)
  shutil.rmtree(other / 'sae_0')  # a table alone is enough for fronts
  out = tmp_path / 'out'
  args = f'--runs={runs[0]},{other}', f'--out={out}', '--l0=20,500'
  done = draw(*args, '--reference=topk')
  assert done.returncode == 0, done.stderr
  assert names(out) == files_of(TOYS) | {
    'comparison.csv',
    'embedded_64_6400_100',
    'gpt2_64_6400_100',
  }
  assert names(out / 'gpt2_64_6400_100') == files_of(FRONTS)
  assert names(out / 'embedded_64_6400_100') == files_of(FRONTS | OF_PLACE)
  assert 'frequencies_resid_post_2: left out: it is in 0 of 1' in done.stderr
  assert 'L0 500 is not in the common range 8 to 60' in done.stderr
  assert 'gpt2, resid_post of layer 2: no topk/aux_k' in done.stderr
  assert 'embedded  ' in done.stdout  # the model is told where it differs


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['--runs={empty}'], 'results.csv does not exist; give a folder'),
    (['--runs={wrong}'], 'lacks the columns l0_settled'),
    (['--runs={run}', '--reference=gated'], 'no gated to compare with'),
    (['--runs={run}', '--l0=10,0'], '--l0=10,0: expected positive numbers'),
    (['--runs={run}', '--out={file}'], 'is no folder'),
  ],
  ids=['none', 'columns', 'reference', 'l0', 'out'],
)
def test_bad_input_is_one_line_and_writes_nothing(
  runs, tmp_path, args, message
):
  places = {'run': runs[0], 'empty': tmp_path / 'empty'}
  places |= {'wrong': tmp_path / 'wrong', 'file': tmp_path / 'file'}
  places['empty'].mkdir()
  places['file'].write_text('precious')
  places['wrong'].mkdir()
  table = (runs[0] / 'results.csv').read_text()
  (places['wrong'] / 'results.csv').write_text(
    table.replace('l0_settled', 'settled')
  )
  out = tmp_path / 'out'
  done = draw(f'--out={out}', *(arg.format(**places) for arg in args))
  assert done.returncode == 2, done.stderr
  (line,) = done.stderr.strip().splitlines()
  assert line.startswith('error: ')
  assert message in line
  assert not out.exists()
  assert places['file'].read_text() == 'precious'
