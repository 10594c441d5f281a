"""What a curve warns of: each once, with cause and remedy."""

import numpy as np
import pytest

from jumprelu_jax import monitor


@pytest.fixture
def run(make_run):
  return make_run(
    sae__num_latents=1000,
    train__steps=1000,
    objective__sparsity_warmup_steps=100,
    optimizer__warmup_steps=10,
  )


def record(step, **values):
  healthy = {'l0': 20.0, 'dead_fraction': 0.1, 'extreme_thresholds': 0.0}
  return {'step': step} | healthy | values


def said(records, run):
  """What each record in turn warned of, as words of the messages."""
  return [monitor.new(records[: i + 1], run) for i in range(len(records))]


def test_a_healthy_curve_warns_of_nothing(run):
  records = [record(10, l0=800.0), record(100, l0=300.0)]
  records += [record(step) for step in range(200, 1001, 100)]
  assert said(records, run) == [[]] * len(records)


@pytest.mark.parametrize(
  ('bad', 'message', 'remedy'),
  [
    ({'l0': 0.3}, 'L0 collapsed to 0.3', 'Lower config.objective.sparsity_coe'),
    ({'l0': 400.0}, 'L0 is 400 of 1,000', 'Raise config.objective.sparsity_co'),
    ({'l0': 120.0}, 'L0 is 120 of 1,000', 'lower config.optimizer.learning_ra'),
    ({'dead_fraction': 0.95}, '95% of the latents have not', '+aux_k'),
    ({'dead_fraction': 1.0}, '100% of the latents', 'initial_b_dec=mean'),
    (
      {'extreme_thresholds': 0.002},
      '0.20% of the thresholds are near',
      'config.optimizer.threshold_learning_rate=0.02',
    ),
  ],
)
def test_each_is_said_once_with_a_remedy(run, bad, message, remedy):
  records = [record(300), record(400, **bad), record(500, **bad), record(600)]
  records.append(record(700, **bad))
  found = said(records, run)
  assert [len(messages) for messages in found] == [0, 1, 0, 0, 0]
  ((only,),) = found[1:2]
  assert message in only
  assert remedy in only


SINKS = np.ones((400, 3))
SINKS[::40] *= 100  # ten: 1e5 of 100,390


def test_the_share_of_outliers():
  np.testing.assert_allclose(monitor.outlier_share(SINKS), 1e5 / 100_390)
  # Not of rows of just ten times the median.
  assert monitor.outlier_share(np.array([[1.0], [1.0], [10.0]])) == 0
  for value in (0, np.inf, np.nan):
    assert monitor.outlier_share(np.full((3, 2), value)) == 0


def test_rows_are_warned_of(run):
  run = run.with_values({'train.batch_size': 256})  # of 1,000 steps
  assert monitor.of_rows(run, 25_600, 0.4) == []
  (passes,) = monitor.of_rows(run, 25_599, 0.4)
  assert 'each of the 25,599 rows is seen 10.0 times' in passes
  (sinks,) = monitor.of_rows(run, 10**6, 0.6)
  assert 'attention sinks, have 60.0% of the squared norm' in sinks
  assert 'config.activations.max_norm_multiple=10' in sinks


@pytest.mark.parametrize(
  'bad', [{'l0': 0.3}, {'dead_fraction': 0.95}, {'squared_error': 1.2}]
)
def test_lambda_is_not_blamed_for_sinks(run, bad):
  (without,) = monitor.new([record(300, **bad)], run)
  (only,) = monitor.new([record(300, **bad)], run, monitor.outlier_share(SINKS))
  assert 'config.activations.max_norm_multiple=10' in only
  assert 'max_norm_multiple' not in without
  assert 'sparsity_coeff' not in only
  assert 'learning_rate' not in only


def test_an_error_above_that_of_zeros(run):
  records = [record(200, squared_error=3.0), record(250, squared_error=1.02)]
  records.append(record(300, squared_error=1.25))
  records.append(record(400, squared_error=1.3))
  first, second, (only,), fourth = said(records, run)
  assert [first, second, fourth] == [[]] * 3
  assert 'the squared error is 1.25 of the mean squared norm' in only
  assert 'Lower config.optimizer.learning_rate=' in only


def test_an_end_at_nothing(run):
  records = [record(500, l0=0.0), record(1000, l0=0.01)]
  (collapsed,), (ended,) = said(records, run)
  assert 'L0 collapsed to 0' in collapsed
  assert 'training ends at an L0 of 0.01' in ended


def test_l0_may_be_anything_until_it_has_settled(run):
  records = [record(step, l0=900.0) for step in (50, 100, 200)]
  assert said(records, run) == [[], [], []]
  assert 'L0 is 900' in said([*records, record(201, l0=900.0)], run)[-1][0]


def test_the_remedy_of_topk_is_its_k(run):
  topk = run.with_values(
    {'sae.architecture': 'topk', 'objective.name': 'aux_k', 'sae.k': 2}
  )
  (only,) = monitor.new([record(300, dead_fraction=0.99)], topk)
  assert 'Raise config.sae.k=2' in only


def test_several_at_once(run):
  bad = record(300, l0=0.0, dead_fraction=1.0, extreme_thresholds=1.0)
  assert len(monitor.new([bad], run)) == 3


def test_no_records_and_no_numbers_warn_of_nothing(run):
  assert monitor.new([], run) == []
  nan = float('nan')
  assert monitor.new([record(300, l0=nan, dead_fraction=nan)], run) == []
