"""Metrics against float64 formulas that see all rows at once."""

import math

from helpers import metrics_reference
import jax
from jax import numpy as jnp
import numpy as np
import pytest
import scipy.special

from jumprelu_jax import metrics
from jumprelu_jax import top

N, D, M, V = 403, 24, 40, 50
ABLATED = ('clean', 'mean_ablated', 'zero_ablated', 'zero_everywhere')


@pytest.fixture(scope='module')
def data():
  """Rows with a mean far from zero, an imperfect SAE, and positions to skip."""
  rng = np.random.default_rng(0)
  y = 5 * rng.normal(size=D) + rng.normal(size=(N, D)) * rng.uniform(0.2, 3, D)
  y[[17, 200]] *= 10  # two sinks of one norm
  y[200] = -y[17]
  frequency = np.concatenate([np.zeros(3), np.geomspace(0.004, 0.6, M - 3)])
  f = rng.uniform(0.5, 4, (N, M)) * (rng.random((N, M)) < frequency)
  clean = 4 * rng.normal(size=(N, V))
  is_text = rng.random(N) < 0.8
  f[np.flatnonzero(is_text)[:5]] = 0  # no latent is active
  arrays = {
    'y': y,
    'y_hat': 0.8 * y + 0.7 * rng.normal(size=(N, D)) + 0.3,
    'f': f,
    'gradient': rng.normal(size=(N, D)),
    'clean': clean,
    'spliced': 0.9 * clean + rng.normal(size=(N, V)),
    'mean_ablated': 2 * rng.normal(size=(N, V)),
    'zero_ablated': 5 * rng.normal(size=(N, V)),
    'zero_everywhere': 6 * rng.normal(size=(N, V)),
  }
  for array in arrays.values():  # absurd, and must not matter
    array[~is_text] = 1e9 if array is f else np.nan
  predicts = is_text & (rng.random(N) < 0.8)
  return {name: array.astype('float32') for name, array in arrays.items()} | {
    'target': rng.integers(0, V, N).astype('int32'),
    'is_text': is_text,
    'predicts': predicts,
    'has_next': predicts | (rng.random(N) < 0.9),
    'is_attributed': predicts & (rng.random(N) < 0.8),
  }


@pytest.fixture(scope='module')
def W_dec():
  return np.random.default_rng(1).normal(size=(M, D)).astype('float32')


@jax.jit
def columns(batch, W_dec, pivot_D, top_norm):
  """What the device gives of a batch."""
  losses = {
    f'loss_{name}': metrics.cross_entropy(batch[name], batch['target'])
    for name in ABLATED
  }
  of_predictions = metrics.of_predictions(
    batch['clean'], batch['spliced'], batch['target']
  )
  of_importance = metrics.of_importance(batch['f'], batch['gradient'], W_dec)
  y, is_text = batch['y'], batch['is_text']
  return (
    metrics.totals(y, batch['f'], pivot_D, is_text)
    | top.rest(y, pivot_D, is_text, top_norm),
    metrics.of_rows(batch['y'], batch['y_hat'], pivot_D),
    losses | of_predictions,
    of_importance,
  )


def sums_of(batch, W_dec, pivot_D, top_norm):
  is_text, predicts = batch['is_text'], batch['predicts']
  totals, of_text, of_predictions, of_importance = jax.device_get(
    columns(batch, W_dec, pivot_D, top_norm)
  )
  is_rest_N = totals.pop('is_rest_N')
  active = np.sum(batch['f'] > 0, axis=1)[is_text]
  ce_predicts = is_text & batch['has_next']
  ce_columns = {
    'ce_loss_with_sae': of_predictions['loss_spliced'],
    'ce_loss_without_sae': of_predictions['loss_clean'],
    'ce_loss_with_ablation': of_predictions.pop('loss_zero_everywhere'),
  }
  return {
    'y_D': np.sum(batch['y'][is_text], axis=0),
    'positions': is_text.sum(),
    'predictions': predicts.sum(),
    'positions_by_l0': metrics.histogram(active, M),
    **totals,
    **metrics.add_up(of_text, is_text),
    **metrics.add_up_rest(of_text, is_rest_N),
    **metrics.add_up(of_predictions, predicts),
    'ce_predictions': ce_predicts.sum(),
    **metrics.add_up(ce_columns, ce_predicts),
    **metrics.add_up(of_importance, batch['is_attributed']),
  }


def measure(data, W_dec, num_shards, offset=0.0):
  """Returns sums and baseline, merged from unequal batches of some shards.

  Args:
    data: all rows.
    W_dec: the decoder.
    num_shards: of unequal size too, whose sums are merged at the end.
    offset: from the mean to the pivot.
  """
  norms = np.linalg.norm(data['y'], axis=1)
  rows = np.random.default_rng(num_shards).permutation(N)
  ends = [N // 2, N // 2 + 9, N - 30][: num_shards - 1]
  mean_D = data['y'][data['is_text']].mean(0, dtype='float64')
  first_pass = metrics.merge(
    *[
      {'norms': top.Largest(norms[some][data['is_text'][some]])}
      for some in np.split(rows, ends)
    ]
  )
  # By hand: of up to 1,000 positions one is the top, with those of its norm.
  top_norm = first_pass['norms'].at(1) * (1 - 1e-5)
  of_shards = []
  for shard in np.split(rows, ends):
    of_batches = []
    while len(shard):
      size = next(size for size in (60, 7, 1) if size <= len(shard))
      batch = {name: array[shard[:size]] for name, array in data.items()}
      pivot_D = np.float32(mean_D + offset)
      of_batches.append(sums_of(batch, W_dec, pivot_D, top_norm))
      shard = shard[size:]
    of_shards.append(metrics.merge(*of_batches))
  sums = metrics.merge(*of_shards, first_pass)
  return sums, metrics.baseline(sums, sums)


@pytest.mark.parametrize('num_shards', [1, 4])
def test_metrics_equal_their_definitions(data, W_dec, num_shards):
  sums, baseline = measure(data, W_dec, num_shards)
  got, want = (
    metrics.finish(sums, baseline),
    metrics_reference.metrics(data, W_dec),
  )
  assert got.keys() == want.keys()
  for name, value in want.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-6, err_msg=name)
  mean_D = np.float64(data['y'])[data['is_text']].mean(0)
  np.testing.assert_allclose(baseline.mean_D, mean_D, rtol=1e-6)


def test_variance_is_about_the_mean_whatever_the_pivot(data, W_dec):
  got = metrics.finish(*measure(data, W_dec, 4, offset=2.0))
  want = metrics_reference.metrics(data, W_dec)
  np.testing.assert_allclose(got['fvu'], want['fvu'], rtol=1e-6)


@pytest.mark.parametrize('size', [1, 40, 10_000])
def test_the_largest_of_parts_are_the_largest(size, monkeypatch):
  monkeypatch.setattr(top, '_MOST_NORMS', 50)
  values = np.random.default_rng(0).normal(size=10_000)
  parts = [
    {'norms': top.Largest(some)}
    for some in np.split(values, range(size, len(values), size))
  ]
  largest = metrics.merge(*parts)['norms']
  for count in (1, 7, 50):
    assert largest.at(count) == np.sort(values)[-count]
  assert len(largest.values) == (50 if size < 10_000 else 10_000)
  assert top.Largest(np.zeros(0)).at(1) == 0


def test_latents_are_counted_exactly(data, W_dec):
  got = metrics.latents(measure(data, W_dec, 4)[0])
  f = data['f'][data['is_text']]
  np.testing.assert_array_equal(got['fired_M'], (f > 0).sum(0))
  np.testing.assert_array_equal(got['frequency_M'], (f > 0).mean(0))
  by_l0 = [((f > 0).sum(1) == l0).sum() for l0 in range(M + 1)]
  largest = np.flatnonzero(by_l0).max()
  np.testing.assert_array_equal(got['positions_by_l0'], by_l0[: largest + 1])
  assert got['positions'] == len(f)


def test_sums_are_kept_in_64_bits():
  large = {'a': np.int32(2**31 - 1), 'b_M': np.full(2, 2**24, 'float32')}
  ones = {'a': np.int32(1), 'b_M': np.ones(2, 'float32')}
  merged = metrics.merge(large, ones)
  assert merged['a'] == 2**31
  np.testing.assert_array_equal(merged['b_M'], [2**24 + 1] * 2)
  column = {'c': np.array([2**24, 1, 1], 'float32')}
  assert metrics.add_up(column, np.ones(3, bool))['c'] == 2**24 + 2


def test_metrics_by_hand():
  # Two rows; the mean is (2, 0), the variance 1, the errors 1 and 0.
  y_ND = jnp.array([[1.0, 0.0], [3.0, 0.0]])
  y_hat_ND = jnp.array([[1.0, 1.0], [3.0, 0.0]])
  f_NM = jnp.array([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0]])
  both = np.ones(2, bool)
  sums = {
    'positions': 2,
    'predictions': 2,
    'loss_spliced': 2 * 3.0,
    'kl': 2 * 0.5,
    'ce_loss_with_sae': 4 * 3.5,
    'ce_predictions': 4,
    'rest_positions': 1,
    'rest_squared_error': 1.0,
    'rest_squared_deviation': 1.0,
    'rest_deviation_D': np.array([1.0, 0.0]),
    **metrics.totals(y_ND, f_NM, jnp.zeros(2), both),
    **metrics.add_up(metrics.of_rows(y_ND, y_hat_ND, jnp.zeros(2)), both),
  }
  baseline = metrics.Baseline(
    np.array([2.0, 0.0]), 2.5, 4.5, 12.5, 2.7, 6.7, 3.0
  )
  got = metrics.finish(metrics.merge(sums), baseline)
  want = {
    'l0': 1.5,
    'dead_fraction': 1 / 3,
    'fvu': 0.5,
    'top_variance_share': 0.5,
    'top_positions': 1,
    'explained_variance': 0.5,
    'cosine': (1 / math.sqrt(2) + 1) / 2,
    'relative_reconstruction_bias': 11 / 10,
    'delta_lm_loss': 0.5,
    'loss_recovered': 0.75,
    'loss_recovered_zero': 0.95,
    'ce_loss_score': 0.8,
    'kl': 0.5,
  }
  for name, value in want.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-6, err_msg=name)
  assert math.isnan(got['importance_uniformity'])


@pytest.mark.parametrize(
  ('effects', 'uniformity'),
  [
    ([2.0, -2.0, 2.0, 2.0], 1.0),  # all the same, whatever their sign
    ([5.0, 0.0, 0.0, 0.0], 1.0),  # one is active
    ([3.0, 1e-30, 1e-30, 0.0], 1 / 3),  # three are, one has all the effect
    ([3.0, 1.0, 0.0, 0.0], 4 / 3**0.75 / 2),
  ],
)
def test_importance_by_hand(effects, uniformity):
  f_NM = jnp.asarray([effects], 'float32')
  got = metrics.of_importance(abs(f_NM), jnp.ones((1, 1)), jnp.sign(f_NM).T)
  np.testing.assert_allclose(got['importance_uniformity'], [uniformity], 1e-6)
  np.testing.assert_array_equal(got['attributed'], [1])


def test_where_nothing_is_active_importance_is_not_defined():
  got = metrics.of_importance(
    jnp.zeros((2, 3)), jnp.ones((2, 4)), jnp.ones((3, 4))
  )
  np.testing.assert_array_equal(got['importance_uniformity'], [0, 0])
  np.testing.assert_array_equal(got['attributed'], [0, 0])


def test_kl_is_zero_from_itself_and_finite_far_away():
  rng = np.random.default_rng(0)
  logits = jnp.asarray(10 * rng.normal(size=(5, V)), 'float32')
  target = jnp.zeros(5, 'int32')
  same = metrics.of_predictions(logits, logits + 100, target)
  np.testing.assert_allclose(same['kl'], 0, atol=2e-5)
  far = metrics.of_predictions(30 * logits, -30 * logits, target)
  p, log_q = (
    fn(np.float64(sign * 30 * logits), axis=1)
    for fn, sign in (
      (scipy.special.softmax, 1),
      (scipy.special.log_softmax, -1),
    )
  )
  log_p = scipy.special.log_softmax(np.float64(30 * logits), axis=1)
  want = np.where(p > 0, p * (log_p - log_q), 0).sum(1)
  np.testing.assert_allclose(far['kl'], want, rtol=1e-6)


def test_a_zero_reconstruction_has_no_direction():
  y_ND = jnp.ones((2, 3))
  got = metrics.of_rows(y_ND, jnp.zeros((2, 3)), jnp.zeros(3))
  np.testing.assert_array_equal(got['cosine'], [0, 0])
  assert math.isnan(metrics.ratio(0.0, 0.0))


def test_latents_at_a_share_are_not_over_it():
  # Of 100 positions: a latent at 1%, one at 2%, one at 10%, one at 11%.
  f_NM = (np.arange(100)[:, None] < [1, 2, 10, 11]).astype('float32')
  y_ND = np.random.default_rng(0).normal(size=(100, 2)).astype('float32')
  every = np.ones(100, bool)
  rows = metrics.of_rows(y_ND, 0.5 * y_ND, jnp.zeros(2))
  sums = {
    **dict.fromkeys(('predictions', 'loss_spliced', 'kl'), 1),
    **dict.fromkeys(('ce_loss_with_sae', 'ce_predictions'), 1),
    **dict.fromkeys(('rest_positions', 'rest_squared_error'), 0),
    'rest_squared_deviation': 0.0,
    'rest_deviation_D': np.zeros(2),
    **metrics.totals(y_ND, f_NM, jnp.zeros(2), every),
    **metrics.add_up(rows, every),
    'positions': 100,
  }
  baseline = metrics.Baseline(np.zeros(2), 2.5, 4.5, 12.5, 2.7, 6.7, 3.0)
  got = metrics.finish(metrics.merge(sums), baseline)
  assert got['frac_over_1pct'] == 3 / 4
  assert got['frac_over_10pct'] == 1 / 4
