"""A run from end to end: its folder, its table, and what it refuses."""

import csv
import json
import pathlib
import shutil

from helpers import sweeping
import numpy as np
import pytest

from experiments.records import make
from jumprelu_jax import config as config_lib
from jumprelu_jax import errors
from jumprelu_jax import export
from jumprelu_jax import inputs
from jumprelu_jax import plot
from jumprelu_jax import run_folder
from jumprelu_jax import runs
from jumprelu_jax import sae_folders
from jumprelu_jax import supply
from jumprelu_jax.activations import store as store_lib
from jumprelu_jax.lm import sites
from jumprelu_jax.lm import transformer
from jumprelu_jax.records import schema
from jumprelu_jax.records import state


@pytest.fixture(scope='module')
def sweep(tiny_run):
  """The config of a sweep of two."""
  return tiny_run.with_values({'sweep.saes': ['jumprelu/l0/1e-3/1e-1']})


@pytest.fixture(scope='module')
def finished(sweep, tmp_path_factory):
  """(folder, rows) of the finished sweep."""
  workdir = tmp_path_factory.mktemp('runs') / 'sweep'
  return workdir, sweeping.run_sweep(sweep, workdir)


def evaluated(folder, run):
  """The row of one SAE, measured again."""
  ((_, row, _),) = sae_folders.evaluate([(folder, run)], inputs.prepare(run))
  return row


def contents(folder):
  return {
    path.relative_to(folder): path.read_bytes()
    for path in folder.rglob('*')
    if path.is_file()
  }


def test_results_have_exactly_the_columns(finished):
  with (finished[0] / 'results.csv').open() as file:
    table = list(csv.DictReader(file))
  assert ', '.join(table[0]) == (
    'architecture, objective, sparsity_coeff, k, seed, model, site, layer, '
    'd_model, num_latents, tokens, steps, l0, fvu, delta_lm_loss, loss_clean, '
    'loss_spliced, loss_mean_ablated, loss_recovered, dead_fraction, '
    'frac_over_1pct, frac_over_10pct, relative_reconstruction_bias, '
    'l0_settled, loss_zero_ablated, loss_recovered_zero, kl, cosine, '
    'explained_variance, explained_variance_legacy, importance_uniformity'
  )
  assert [row['sparsity_coeff'] for row in table] == ['0.001', '0.1']
  assert [row['k'] for row in table] == ['', '']
  assert [row['tokens'] for row in table] == [str(40 * 64)] * 2
  assert {row['l0_settled'] for row in table} <= {'True', 'False'}
  assert float(table[0]['l0']) > float(table[1]['l0'])


def test_results_of_topk_have_k_and_no_coefficient(tiny_run, tmp_path):
  saes = ['topk/reconstruction/3', 'jumprelu/l0/0.01']
  run = tiny_run.with_values({'sweep.saes': saes})
  sweeping.run_sweep(run, tmp_path / 'sweep')
  with (tmp_path / 'sweep' / 'results.csv').open() as file:
    table = list(csv.DictReader(file))
  keys = ('architecture', 'objective', 'sparsity_coeff', 'k')
  assert [[row[key] for key in keys] for row in table] == [
    ['topk', 'reconstruction', '', '3'],
    ['jumprelu', 'l0', '0.01', ''],
  ]
  assert 0 < float(table[0]['l0']) <= 3
  names = {path.name for path in (tmp_path / 'sweep').glob('*_*')}
  assert names == {'topk_reconstruction_3', 'jumprelu_l0_0.01'}
  sae = export.load_npz(tmp_path / 'sweep/topk_reconstruction_3/params.npz')
  assert sae.k == 3


def test_an_sae_folder_holds_what_it_promises(finished, sweep):
  folder = finished[0] / 'jumprelu_l0_0.001'
  names = {path.name for path in folder.iterdir()}
  assert names == {
      'config.json', 'params.npz', 'evaluation.json', 'latents.npz',
      'metrics.jsonl', 'tensorboard', 'checkpoints', 'seal.json',
  }  # fmt: skip
  assert list((folder / 'tensorboard').iterdir())
  run = run_folder.load_run(folder)
  assert run == sweep.with_values({'objective.sparsity_coeff': 1e-3})


def test_released_sae_takes_raw_activations(finished):
  workdir, rows = finished
  store = store_lib.Store(workdir / 'activations' / 'resid_post_1')
  sae = export.load_npz(workdir / 'jumprelu_l0_0.001' / 'params.npz')
  raw_BD = store.open(0)[:]
  l0 = float(np.mean(np.sum(sae.encode(raw_BD) > 0, axis=-1)))
  # The held-out text is the harvested one here, so L0 must be nearly the same.
  np.testing.assert_allclose(l0, rows[0]['l0'], rtol=0.05)


@pytest.mark.slow
def test_a_norm_filter_reaches_metrics_and_records(tiny_run, tmp_path, capsys):
  """What training leaves out is left out of all that is measured."""
  run = tiny_run.with_values(
    {'sweep.saes': ['jumprelu/l0/1e-3'], 'activations.max_norm_multiple': 1.02}
  )
  (row,) = sweeping.run_sweep(run, tmp_path / 'sweep')
  folder = tmp_path / 'sweep' / 'jumprelu_l0_0.001'
  seal = json.loads((folder / 'seal.json').read_text())
  assert 'norm_limits.json' in seal['files']
  written = json.loads((folder / 'norm_limits.json').read_text())
  assert written.keys() == {'resid_post/1'}

  prepared = inputs.prepare(run)
  tokens_NL = prepared.heldout_NL  # the harvested text too
  (x_NLD,) = transformer.tap(
    prepared.model, tokens_NL, (sites.Site('resid_post', 1),)
  )
  norm_NL = np.linalg.norm(np.float64(x_NLD), axis=-1)
  is_text_NL = tokens_NL > 2
  store = store_lib.Store(tmp_path / 'sweep' / 'activations' / 'resid_post_1')
  assert 0.1 < store.outlier_rate < 0.9
  median = np.median(norm_NL[is_text_NL])
  np.testing.assert_allclose(written['resid_post/1'], 1.02 * median, rtol=0.02)
  kept = np.sum(is_text_NL & (norm_NL <= written['resid_post/1']))
  assert row['positions'] == kept
  assert row == evaluated(folder, run_folder.load_run(folder))
  request = make.Request(
    str(folder), tokens=tokens_NL.size, settings=state.Settings(width=6)
  )
  make.make(request, tmp_path / 'records')
  records = json.loads((tmp_path / 'records' / schema.SOURCE).read_text())
  assert records['positions'] == kept

  (folder / 'norm_limits.json').unlink()
  with pytest.raises(errors.InputError, match='is damaged'):
    run_folder.load_run(folder)
  runs._seal(folder)  # as of an earlier version
  everything = evaluated(folder, run_folder.load_run(folder))
  assert everything['positions'] == is_text_NL.sum()
  assert 'norm_limits.json is missing' in capsys.readouterr().err


def test_finished_work_is_not_done_again(finished, sweep, monkeypatch):
  workdir, _ = finished
  before = contents(workdir)

  def fail(*args, **kwargs):
    raise AssertionError('this was finished')

  for module, name in (
    (runs.loop, 'fit_together'),
    (supply.harvest_lib, 'harvest'),
    (sae_folders.evaluation, 'measure'),
  ):
    monkeypatch.setattr(module, name, fail)
  sweeping.run_sweep(sweep, workdir)
  assert contents(workdir) == before


def test_evaluating_again_gives_the_same_row(finished):
  workdir, rows = finished
  folder = workdir / 'jumprelu_l0_0.1'
  run = run_folder.load_run(folder)
  again = evaluated(folder, run)
  assert again == rows[1]


def test_frequencies_of_latents_lie_beside_the_metrics(finished):
  workdir, rows = finished
  for row, name in zip(rows, ('0.001', '0.1'), strict=True):
    with np.load(workdir / f'jumprelu_l0_{name}' / 'latents.npz') as file:
      found = dict(file)
    assert found['fired_M'].dtype == np.int64
    positions, by_l0 = found['positions'], found['positions_by_l0']
    assert positions == by_l0.sum() == row['positions'] > 0
    np.testing.assert_array_equal(
      found['frequency_M'], found['fired_M'] / positions
    )
    np.testing.assert_allclose(found['frequency_M'].sum(), row['l0'])
    mean = (by_l0 * np.arange(len(by_l0))).sum() / positions
    np.testing.assert_allclose(mean, row['l0'])
    assert np.mean(found['frequency_M'] == 0) == row['dead_fraction']


def test_metrics_that_are_not_defined_are_null(finished):
  workdir, rows = finished
  path = workdir / 'jumprelu_l0_0.001' / 'evaluation.json'
  assert 'NaN' not in path.read_text()
  assert rows[0]['importance_uniformity'] is None
  assert rows[0]['kl'] > 0


def spoil(folder, value):
  """Puts a number into the decoder's bias of an SAE's folder."""
  with np.load(folder / 'params.npz') as file:
    arrays = dict(file)
  arrays['b_dec'][0] = value
  np.savez(folder / 'params.npz', **arrays)


def test_metric_that_is_not_finite_is_an_error(finished, tmp_path):
  shutil.copytree(finished[0], tmp_path / 'run')
  bad, good = (tmp_path / 'run' / f'jumprelu_l0_{x}' for x in ('0.001', '0.1'))
  spoil(bad, 1e30)  # finite, but its square is not
  run = run_folder.load_run(good)
  found = sae_folders.evaluate([(bad, run), (good, run)], inputs.prepare(run))
  # What can be measured is kept.
  assert next(found)[:2] == (good, finished[1][1])
  named = r'jumprelu_l0_0.001: fvu, .*explained_variance, .*: not finite on'
  with pytest.raises(errors.NotFiniteError, match=named):
    next(found)


@pytest.mark.parametrize('value', [np.nan, np.inf], ids=str)
def test_weights_that_are_not_finite_are_refused(finished, tmp_path, value):
  folder = tmp_path / 'sae'
  shutil.copytree(finished[0] / 'jumprelu_l0_0.001', folder)
  run = run_folder.load_run(folder)
  spoil(folder, value)
  with pytest.raises(errors.InputError, match='b_dec has 1 numbers .*finite'):
    evaluated(folder, run)


def test_importance_and_special_positions_are_asked_for(finished):
  folder = finished[0] / 'jumprelu_l0_0.001'
  # Before the last block, where other positions still attend to special ones.
  run = run_folder.load_run(folder).with_values({'lm.layer': 0})
  asked = run.with_values(
    {
      'evaluation.importance_sequences': 4,
      'evaluation.splice_special': True,
    }
  )
  plain, row = evaluated(folder, run), evaluated(folder, asked)
  assert plain['importance_uniformity'] is None
  assert 0 < row['importance_uniformity'] <= 1
  assert row['kl'] != plain['kl']
  assert row['fvu'] == plain['fvu']


def test_saes_are_evaluated_in_groups_that_fit(finished, monkeypatch):
  workdir, rows = finished
  folders = [workdir / f'jumprelu_l0_{name}' for name in ('0.001', '0.1')]
  pairs = [(folder, run_folder.load_run(folder)) for folder in folders]
  prepared = inputs.prepare(pairs[0][1])
  sizes, measure = [], sae_folders.evaluation.measure

  def counted(saes, *args):
    sizes.append(len(saes))
    return measure(saes, *args)

  monkeypatch.setattr(sae_folders.evaluation, 'measure', counted)
  one_bytes = (folders[0] / 'params.npz').stat().st_size
  for limit, expected in ((2 * one_bytes, [2]), (one_bytes, [1, 1])):
    monkeypatch.setattr(sae_folders, '_TOGETHER_BYTES', limit)
    found = list(sae_folders.evaluate(pairs, prepared))
    assert [folder for folder, _, _ in found] == folders
    assert [row for _, row, _ in found] == rows
    assert sizes == expected
    sizes.clear()


def test_workdir_with_another_config_is_left_alone(finished, sweep):
  workdir, _ = finished
  before = contents(workdir)
  other = sweep.with_values({'sae.num_latents': 64})
  with pytest.raises(
    errors.InputError, match='sae.num_latents: 32 there, 64 now'
  ):
    run_folder.claim(workdir, other)
  assert contents(workdir) == before


def test_a_run_may_continue_on_another_mesh(finished, sweep):
  run_folder.claim(finished[0], sweep.with_values({'mesh.data': 2}))


def test_workdir_that_holds_something_else_is_refused(tmp_path, tiny_run):
  (tmp_path / 'thesis.tex').write_text('precious')
  with pytest.raises(errors.InputError, match='holds no run'):
    run_folder.claim(tmp_path, tiny_run)
  assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']


def test_sae_for_another_site_is_refused(finished, tmp_path):
  folder = tmp_path / 'sae'
  shutil.copytree(finished[0] / 'jumprelu_l0_0.1', folder)
  run = run_folder.load_run(folder).with_values({'lm.site': 'attn_z'})
  with pytest.raises(errors.InputError, match='size 16, but attn_z.*size 12'):
    evaluated(folder, run)


def test_load_run_refuses_what_is_no_run(tmp_path):
  with pytest.raises(errors.InputError, match='folder that a run has written'):
    run_folder.load_run(tmp_path)
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(errors.InputError, match='is not JSON'):
    run_folder.load_run(tmp_path)


def test_pareto_plot_is_drawn(finished, tmp_path):
  _, rows = finished
  plot.pareto(rows, tmp_path)
  assert (tmp_path / 'pareto.png').read_bytes().startswith(b'\x89PNG')
  assert (tmp_path / 'pareto.pdf').read_bytes().startswith(b'%PDF')


def test_json_of_a_run_is_its_resolved_config(finished, sweep):
  raw = json.loads((finished[0] / 'config.json').read_text())
  assert config_lib.RunConfig.from_config_dict(raw) == sweep
  assert isinstance(finished[0], pathlib.Path)
