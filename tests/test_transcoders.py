"""A transcoder from end to end: two sites, stored or live, to a row."""

import jax
import numpy as np
import pytest

from jumprelu_jax import inputs
from jumprelu_jax import loop
from jumprelu_jax import run_folder
from jumprelu_jax import runs
from jumprelu_jax import sae_folders
from jumprelu_jax import supply
from jumprelu_jax.activations import store as store_lib


@pytest.fixture(scope='module')
def run(tiny_run):
  """Trained on, and evaluated on, the whole of one text."""
  return tiny_run.with_values(
    {
      'lm.site': 'mlp_in',
      'lm.target_site': 'mlp_out',
      'sae.architecture': 'jumprelu_skip_transcoder',
      'objective.sparsity_coeff': 1e-2,
      'activations.bucket_rows': 400,
      'activations.sequences': 0,
      'evaluation.sequences': 0,
      'train.steps': 60,
    }
  )


@pytest.fixture(scope='module')
def finished(run, tmp_path_factory):
  """(folder, row) of the run."""
  workdir = tmp_path_factory.mktemp('runs') / 'transcoder'
  run_folder.claim(workdir, run)
  (row,) = runs.run_all(inputs.prepare(run), {'sae': run}, workdir)
  return workdir, row


def all_rows(folder):
  """Rows of every shard of a store, float64, and their origins."""
  store = store_lib.Store(folder)
  indices = range(len(store.rows_per_shard))
  rows_ND = np.concatenate([store.open(i)[:] for i in indices])
  return rows_ND.astype(float), np.concatenate(
    [store.origin(i) for i in indices]
  )


def test_row_names_both_sites(finished, run):
  workdir, row = finished
  assert row['site'] == 'mlp_in->mlp_out'
  assert row['layer'] == 1
  table = (workdir / 'results.csv').read_text()
  assert ',mlp_in->mlp_out,1,' in table
  names = {path.name for path in (workdir / 'activations').iterdir()}
  assert {'mlp_in_1', 'mlp_out_1'} < names
  folder = workdir / 'sae'
  ((_, again, _),) = sae_folders.evaluate([(folder, run)], inputs.prepare(run))
  assert again == row


def test_metrics_equal_those_of_the_stored_rows(finished):
  workdir, row = finished
  x, origin = all_rows(workdir / 'activations' / 'mlp_in_1')
  y, target_origin = all_rows(workdir / 'activations' / 'mlp_out_1')
  np.testing.assert_array_equal(origin, target_origin)
  assert not np.isin(origin[:, 0], (0, 1, 2)).any()  # PAD, EOS, BOS
  (path,) = workdir.glob('*/params.npz')
  with np.load(path) as file:
    p = {key: file[key].astype(float) for key in file}
  pre = x @ p['W_enc'] + p['b_enc']
  f = pre * (pre > p['threshold'])
  y_hat = f @ p['W_dec'] + p['b_dec'] + x @ p['W_skip']
  fvu = ((y - y_hat) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
  np.testing.assert_allclose(row['fvu'], fvu, rtol=1e-4)
  l0 = (f > 0).sum(1).mean()
  np.testing.assert_allclose(row['l0'], l0, rtol=1e-4)
  assert 0.5 < l0 < 30
  assert np.abs(p['W_skip']).max() > 1e-3
  # It has learned something, and of the target: not of the input.
  assert fvu < 0.8
  assert ((x - y_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum() > 1


def test_live_is_stored(finished, run, tmp_path):
  workdir, _ = finished
  states = []
  for mode, folder in (('stored', workdir), ('live', tmp_path)):
    prepared = inputs.prepare(run.with_values({'activations.mode': mode}))
    shards = supply.open_shards(prepared, folder)
    assert shards.widths == (16, 16)
    assert len(shards.rows_per_shard) >= 3
    states.append(
      loop.fit(prepared.run, shards, prepared.mesh, tmp_path / mode)
    )
  assert not list(tmp_path.rglob('shard*'))
  wanted, _ = jax.tree.flatten_with_path(states[0])
  found = jax.tree.leaves(states[1])
  for got, (path, want) in zip(found, wanted, strict=True):
    np.testing.assert_array_equal(got, want, err_msg=str(path))
