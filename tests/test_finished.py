"""Tables that finished runs left are read back, and joined with folders."""

import json

from helpers import small_results
import numpy as np
import pytest

from jumprelu_jax import errors
from jumprelu_jax import finished
from jumprelu_jax import results


@pytest.fixture
def run(tmp_path):
  """A run of two SAEs: one set by lambda, one by k."""
  rows = [
    small_results.row(sparsity_coeff=1.23456789e-3, l0=20.5, l0_settled=False),
    small_results.row(architecture='topk', sparsity_coeff=None, k=32, l0=32.0),
  ]
  return small_results.write_run(tmp_path / 'run', rows, later_metric=0.6)


def test_a_table_is_read_as_it_was_written(run):
  first, second = results.read(run / 'results.csv')
  expected = small_results.row(sparsity_coeff=0.00123457, l0=20.5)
  del expected['folder']
  assert first == expected | {'l0_settled': False}
  assert (second['sparsity_coeff'], second['k']) == (None, 32)
  assert isinstance(second['tokens'], int)
  assert second['l0_settled'] is True


def test_rows_are_joined_with_their_folders(run):
  first, second = finished.read([run])
  assert (first['folder'], second['folder']) == (run / 'sae_0', run / 'sae_1')
  assert first['later_metric'] == 0.6  # only in evaluation.json
  assert first['fvu'] == 0.2


def test_a_table_that_says_what_was_not_measured_is_refused(run):
  path = run / 'sae_0' / 'evaluation.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'fvu': 0.9}))
  with pytest.raises(errors.InputError, match=r'fvu=0.2 where .* has 0.9'):
    finished.read([run])


def test_a_row_without_a_folder_is_read(run):
  (run / 'sae_0' / 'evaluation.json').unlink()
  first, second = finished.read([run])
  assert first['folder'] is None
  assert 'later_metric' not in first
  assert finished.frequency_M(first) is None
  assert second['folder'] == run / 'sae_1'


def test_a_row_is_not_joined_with_another_seed(run):
  path = run / 'sae_0' / 'evaluation.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'seed': 1}))
  with pytest.raises(errors.InputError, match='which no SAE there is'):
    finished.read([run])


def test_columns_of_later_versions_are_kept(run):
  path = run / 'results.csv'
  header, *lines = path.read_text().splitlines()
  lines = [f'{line},0.5,notes' for line in lines]
  path.write_text('\n'.join([header + ',later_metric,comment', *lines]) + '\n')
  first = results.read(path)[0]
  assert (first['later_metric'], first['comment']) == (0.5, 'notes')


def test_columns_of_metrics_may_lack(run):
  path = run / 'results.csv'
  rows = results.read(path)
  columns = [name for name in results.COLUMNS if name != 'fvu']
  results.write(rows, path, columns)
  row = results.read(path)[0]
  assert finished.number(row, 'fvu') is None
  assert finished.number(row, 'delta_lm_loss') == 0.1
  assert finished.number({'fvu': float('nan')}, 'fvu') is None


def test_frequencies_are_read(run):
  row = finished.read([run])[0]
  frequency_M = finished.frequency_M(row)
  assert frequency_M.shape == (64,)
  assert np.sum(frequency_M == 0) == 3
  np.savez(row['folder'] / 'latents.npz', other=frequency_M)
  assert finished.frequency_M(row) is None


def test_damaged_frequencies_are_an_input_error(run):
  row = finished.read([run])[0]
  path = row['folder'] / 'latents.npz'
  for content in (b'PK', path.read_bytes()[:-30], b''):
    path.write_bytes(content)
    with pytest.raises(errors.InputError, match='latents.npz is damaged'):
      finished.frequency_M(row)


def test_what_is_not_csv_is_an_input_error(run):
  (run / 'results.csv').write_bytes(b'a,b\0' * 10)
  with pytest.raises(errors.InputError, match='give a results.csv'):
    finished.read([run])


def test_no_table_is_an_input_error(tmp_path):
  with pytest.raises(errors.InputError, match='experiments.sweep or'):
    finished.read([tmp_path])


@pytest.mark.parametrize(
  ('old', 'new', 'message'),
  [
    ('l0_settled', 'settled', 'lacks the columns l0_settled; give'),
    ('False', 'perhaps', "line 2: l0_settled='perhaps'; expected True or"),
    ('0.00123457', 'small', "line 2: sparsity_coeff='small'; expected a num"),
    (',64,6400', ',64.5,6400', "num_latents='64.5'; expected a whole number"),
    (',20.5,', ',,', "line 2: l0=''; expected a number"),
    (',20.5,', ',', 'line 2: 30 cells under 31 columns'),
  ],
  ids=['column', 'flag', 'number', 'whole', 'empty', 'cells'],
)
def test_bad_tables_are_input_errors(run, old, new, message):
  path = run / 'results.csv'
  path.write_text(path.read_text().replace(old, new))
  with pytest.raises(errors.InputError, match=message):
    finished.read([run])


def test_a_table_without_rows_is_an_input_error(run):
  path = run / 'results.csv'
  path.write_text(path.read_text().splitlines()[0] + '\n')
  with pytest.raises(errors.InputError, match='has no rows'):
    finished.read([run])
  path.write_text('')
  with pytest.raises(errors.InputError, match='lacks the columns architecture'):
    finished.read([run])


def test_an_sae_that_is_there_twice_is_an_input_error(run, tmp_path):
  with pytest.raises(errors.InputError, match='is there twice'):
    finished.read([run, run])
  rows = [small_results.row(sparsity_coeff=1.23456789e-3, seed=1)]
  other = small_results.write_run(tmp_path / 'other', rows)
  assert len(finished.read([run, other])) == 3


@pytest.mark.parametrize('text', ['{', '[1]'], ids=['cut', 'list'])
def test_a_damaged_evaluation_is_an_input_error(run, text):
  (run / 'sae_1' / 'evaluation.json').write_text(text)
  with pytest.raises(errors.InputError, match='sae_1.*command of its run'):
    finished.read([run])


def test_groups_are_in_order():
  rows = [small_results.row(layer=layer, l0=layer) for layer in (10, 2, 10)]
  found = finished.groups(rows, ('layer', 'site'))
  assert list(found) == [(2, 'resid_post'), (10, 'resid_post')]
  assert len(found[10, 'resid_post']) == 2
