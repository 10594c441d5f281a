"""Live training is stored training, bit for bit, and stores nothing."""

import jax
import numpy as np
import pytest

from jumprelu_jax import errors
from jumprelu_jax import inputs
from jumprelu_jax import loop
from jumprelu_jax import run_folder
from jumprelu_jax import runs
from jumprelu_jax import supply

pytestmark = pytest.mark.exact
STEPS = 60


@pytest.fixture(scope='module')
def make_live(tiny_run):
  """A function from values to a live config of several epochs and buckets."""

  def make(**values):
    return tiny_run.with_values(
      {
        'activations.mode': 'live',
        'activations.bucket_rows': 400,
        'train.steps': STEPS,
        **{key.replace('__', '.'): value for key, value in values.items()},
      }
    )

  return make


def fit(run, workdir):
  """(The state after training, the shards that it is trained on)."""
  prepared = inputs.prepare(run)
  workdir.mkdir(exist_ok=True)
  shards = supply.open_shards(prepared, workdir)
  state = loop.fit(run, shards, prepared.mesh, workdir / 'sae')
  return state, shards


def assert_same(state, other):
  for leaf, wanted in zip(
    jax.tree.leaves(state), jax.tree.leaves(other), strict=True
  ):
    np.testing.assert_array_equal(np.array(leaf), np.array(wanted))


@pytest.fixture(scope='module', params=['float32', 'bfloat16'])
def stored(request, make_live, tmp_path_factory):
  """(dtype, state) of stored training."""
  dtype = request.param
  run = make_live(activations__mode='stored', activations__dtype=dtype)
  folder = tmp_path_factory.mktemp('stored')
  state, shards = fit(run, folder)
  assert len(list(folder.glob('activations/*/shard_*.npy'))) >= 6
  assert len(shards.rows_per_shard) >= 3
  # More than one epoch, whatever the text's length.
  assert STEPS * run.train.batch_size > 2 * sum(shards.rows_per_shard)
  return dtype, state


@pytest.mark.parametrize('prefetch_batches', [0, 3])
def test_live_is_stored(stored, make_live, tmp_path, prefetch_batches):
  dtype, expected = stored
  run = make_live(
    activations__dtype=dtype, activations__prefetch_batches=prefetch_batches
  )
  state, shards = fit(run, tmp_path / 'run')
  assert_same(state, expected)
  assert shards.open(0).dtype == dtype
  # Only tokens are kept, and no row.
  names = {path.name for path in (tmp_path / 'run').iterdir()}
  assert names == {'sequences.npy', 'sequences.json', 'sae'}
  assert not list((tmp_path / 'run').rglob('shard*'))


class FailingOnce:
  """Shards whose n-th opening fails."""

  def __init__(self, shards, openings):
    self._shards, self._left = shards, openings
    self.rows_per_shard = shards.rows_per_shard
    self.scales, self.widths = shards.scales, shards.widths

  def open(self, index):
    self._left -= 1
    if self._left == 0:
      raise RuntimeError('the model fails here')
    return self._shards.open(index)


def test_interrupted_live_training_ends_the_same(stored, make_live, tmp_path):
  dtype, expected = stored
  run = make_live(
    activations__dtype=dtype,
    train__steps_per_log=5,
    train__steps_per_checkpoint=10,
  )
  prepared = inputs.prepare(run)
  shards = supply.open_shards(prepared, tmp_path)
  folder = tmp_path / 'sae'
  with pytest.raises(RuntimeError, match='the model fails here'):
    loop.fit(run, FailingOnce(shards, 9), prepared.mesh, folder)
  checkpoints = [int(p.name) for p in (folder / 'checkpoints').glob('[0-9]*')]
  assert 0 < max(checkpoints) < STEPS
  state, _ = fit(run, tmp_path)
  assert_same(state, expected)


def test_live_run_ends_with_results(make_live, tmp_path):
  run = make_live(train__steps=30, evaluation__sequences=8)
  run_folder.claim(tmp_path / 'run', run)
  (row,) = runs.run_all(inputs.prepare(run), {'sae': run}, tmp_path / 'run')
  assert row['steps'] == 30
  assert (tmp_path / 'run' / 'results.csv').is_file()
  assert not (tmp_path / 'run' / 'activations').exists()


def test_live_training_cannot_drop_outliers(make_live):
  with pytest.raises(
    errors.InputError, match="set mode='stored' or the multiple to 0"
  ):
    make_live(activations__max_norm_multiple=10.0)
