"""Comparison at matched L0: interpolation, range, seeds, what is left out."""

import math

from helpers import small_results
import numpy as np
import pytest

from jumprelu_jax import comparison
from jumprelu_jax import errors

REFERENCE = ('jumprelu', 'l0')
TOPK = {'architecture': 'topk', 'objective': 'aux_k'}


def front(points, **values):
  return small_results.front('fvu', points, **values)


def compare(rows, l0s=(), metrics=('fvu',)):
  return comparison.compare(rows, REFERENCE, l0s, metrics)


def test_interpolation_is_linear_in_log_l0():
  found = comparison.front_of(front([(10, 0.5), (1000, 0.1)]), 'fvu')
  np.testing.assert_allclose(found.at(100), 0.3, rtol=1e-12)  # half of the way
  np.testing.assert_allclose(found.at(10 ** (1 + 2 / 4)), 0.4, rtol=1e-12)
  assert found.at(10) == 0.5
  assert found.at(1000) == 0.1


def test_nothing_is_extrapolated():
  found = comparison.front_of(front([(10, 0.5), (1000, 0.1)]), 'fvu')
  assert found.at(9.99) is None
  assert found.at(1000.01) is None


def test_a_front_that_is_not_monotone_keeps_its_bump():
  points = [(10, 0.3), (100, 0.4), (1000, 0.1)]
  found = comparison.front_of(front(points[::-1]), 'fvu')
  assert found.at(100) == 0.4  # worse than at a smaller L0, and not smoothed
  np.testing.assert_allclose(found.at(10**1.5), 0.35, rtol=1e-12)
  np.testing.assert_allclose(found.at(10**2.5), 0.25, rtol=1e-12)


def test_runs_of_one_l0_count_as_their_mean():
  points = [(10, 0.3), (10, 0.5), (100, 0.1)]
  found = comparison.front_of(front(points), 'fvu')
  assert found.at(10) == pytest.approx(0.4)
  assert found.at(10**1.5) == pytest.approx(0.25)


def test_a_run_has_no_place_without_l0_or_metric():
  rows = front([(0, 0.9), (10, math.nan), (20, None), (30, 0.1)])
  found = comparison.front_of(rows, 'fvu')
  assert found.l0s == (30,)
  assert comparison.front_of(rows, 'importance_uniformity') is None


def test_only_the_common_range_is_compared():
  rows = front([(4, 0.5), (60, 0.2)]) + front([(15, 0.4), (300, 0.1)], **TOPK)
  table, _ = compare(rows)
  assert [row['l0'] for row in table] == [20, 50]  # of 5, 10, …, 200
  share = math.log(20 / 15) / math.log(20)
  topk = 0.4 - 0.3 * share
  jumprelu = 0.5 - 0.3 * math.log(5) / math.log(15)
  assert table[0]['value'] == pytest.approx(topk)
  assert table[0]['reference_value'] == pytest.approx(jumprelu)
  assert table[0]['difference'] == pytest.approx(topk - jumprelu)


def test_an_l0_outside_of_the_range_is_named_and_has_no_row():
  rows = front([(4, 0.5), (60, 0.2)]) + front([(15, 0.4), (300, 0.1)], **TOPK)
  table, notes = compare(rows, l0s=(10, 30, 100))
  assert [row['l0'] for row in table] == [30]
  assert len(notes) == 2
  assert 'L0 10 is not in the common range 15 to 60' in notes[0]
  assert 'L0 100 is not' in notes[1]


@pytest.mark.parametrize(
  ('points', 'expected'),
  [
    ([(32, 0.4)], [32]),  # one run
    ([(25, 0.4), (36, 0.4)], [30]),  # no round number between
    ([(100, 0.4), (200, 0.3)], []),
  ],
  ids=['one', 'middle', 'apart'],
)
def test_ranges_without_a_round_number(points, expected):
  rows = front([(11, 0.5), (60, 0.2)]) + front(points, **TOPK)
  table, notes = compare(rows)
  assert [row['l0'] for row in table] == pytest.approx(expected)
  assert bool(notes) == (not expected)


def planted(difference, seeds, rng):
  """Fronts that differ by `difference` within, and by more between seeds."""
  rows = []
  for seed in range(seeds):
    shift, noise = rng.normal(scale=(0.1, 0.004))
    high, low = 0.5 + shift, 0.3 + shift
    rows += front([(5, high), (100, low)], seed=seed)
    high, low = high + difference + noise, low + difference + noise
    rows += front([(5, high), (100, low)], seed=seed, **TOPK)
  return rows


def test_pairing_over_seeds_recovers_a_planted_difference():
  # Seeds differ by 0.1: unpaired, 0.02 would be lost.
  rows = planted(0.02, 8, np.random.default_rng(0))
  table, _ = compare(rows, l0s=[20])
  (row,) = table
  assert row['num_seeds'] == 8
  assert row['interval'] == 'bootstrap'
  assert row['difference'] == pytest.approx(0.02, abs=0.005)
  assert row['low'] < 0.02 < row['high']
  assert 0.001 < row['high'] - row['low'] < 0.01
  assert compare(rows, l0s=[20])[0] == table  # the same resamples


def test_only_seeds_that_have_both_are_paired():
  rows = front([(5, 0.5), (100, 0.5)]) + front([(5, 0.6), (100, 0.6)], **TOPK)
  rows += front([(5, 9.0), (100, 9.0)], seed=1)
  rows += front([(5, 7.0), (100, 7.0)], seed=2, **TOPK)
  (row,) = compare(rows, l0s=[20])[0]
  assert row['num_seeds'] == 1
  assert row['difference'] == pytest.approx(0.1)
  assert row['reference_value'] == pytest.approx(0.5)
  rows = [row for row in rows if row['seed'] > 0]
  table, notes = compare(rows)
  assert table == []
  assert 'no seed in common' in notes[0]


def test_a_seed_counts_only_where_it_was_measured():
  rows = front([(5, 0.5), (100, 0.5)]) + front([(5, 0.6), (100, 0.6)], **TOPK)
  rows += front([(5, 0.5), (30, 0.5)], seed=1)
  rows += front([(5, 0.8), (100, 0.8)], seed=1, **TOPK)
  near, far = compare(rows, l0s=[20, 50])[0]
  assert (near['num_seeds'], far['num_seeds']) == (2, 1)
  assert near['difference'] == pytest.approx(0.2)
  assert far['difference'] == pytest.approx(0.1)


def test_interval_of_one_seed_is_none():
  assert comparison.interval([0.3]) == (None, None, '')


@pytest.mark.parametrize('differences', [[0.1, 0.4], [0.4, -0.2, 0.1]])
def test_interval_of_few_seeds_is_their_range(differences):
  low, high, kind = comparison.interval(differences)
  assert kind == 'range'
  assert (low, high) == pytest.approx((min(differences), max(differences)))


def test_interval_is_that_of_a_mean():
  differences = np.random.default_rng(1).normal(2.0, 1.0, size=400)
  low, high, kind = comparison.interval(differences)
  assert kind == 'bootstrap'
  half = 1.96 * differences.std() / 20
  assert low == pytest.approx(differences.mean() - half, abs=0.01)
  assert high == pytest.approx(differences.mean() + half, abs=0.01)
  narrow = comparison.interval(differences, level=0.5)
  assert narrow[1] - narrow[0] == pytest.approx(
    0.6745 / 1.96 * 2 * half, rel=0.05
  )


def test_unsettled_runs_are_left_out_and_named():
  rows = front([(5, 0.5), (100, 0.3)]) + front([(5, 0.6), (100, 0.4)], **TOPK)
  rows += front([(22, 0.0), (400, 0.0)], l0_settled=False, **TOPK)
  table, notes = compare(rows)
  assert [row['l0'] for row in table] == [5, 10, 20, 50, 100]
  for row in table:
    assert row['difference'] == pytest.approx(0.1)
    assert row['num_unsettled'] == 2
  (note,) = notes
  assert 'topk/aux_k: 2 of 4 runs left out' in note
  assert 'L0 22, 400' in note


def test_an_architecture_without_a_settled_run_has_no_row():
  rows = front([(5, 0.5), (100, 0.3)], l0_settled=False)
  rows += front([(5, 0.6), (100, 0.4)], **TOPK)
  table, notes = compare(rows)
  assert table == []
  (note,) = notes
  assert 'jumprelu/l0: 2 of 2 runs left out' in note


def test_a_metric_that_one_architecture_lacks_is_named():
  rows = front([(5, 0.5), (100, 0.3)]) + front([(5, None), (100, None)], **TOPK)
  table, notes = compare(rows)
  assert table == []
  assert notes == [
    'embedded, resid_post of layer 2, topk/aux_k: fvu is not in all runs'
  ]


@pytest.mark.parametrize(
  'other',
  [
    {'layer': 3},
    {'site': 'mlp_out'},
    {'model': 'gpt2'},
    {'num_latents': 128},
    {'tokens': 1},
    {'steps': 1},
  ],
  ids=lambda other: next(iter(other)),
)
def test_what_is_not_alike_is_not_compared(other):
  rows = front([(5, 0.5), (100, 0.3)])
  rows += front([(5, 0.6), (100, 0.4)], **TOPK, **other)
  table, notes = compare(rows)
  assert table == []
  assert any('no jumprelu/l0 to compare with' in note for note in notes)


def test_each_place_and_metric_has_its_rows():
  rows = []
  for layer in (1, 2):
    rows += front([(5, 0.5), (20, 0.3)], layer=layer)
    rows += front([(5, 0.6), (20, 0.4)], layer=layer, **TOPK)
  table, notes = compare(
    rows, [10], ['fvu', 'delta_lm_loss', 'importance_uniformity']
  )
  assert [(row['layer'], row['metric']) for row in table] == [
    (1, 'fvu'),
    (1, 'delta_lm_loss'),
    (2, 'fvu'),
    (2, 'delta_lm_loss'),
  ]
  assert notes == ['importance_uniformity is in no run']
  assert set(table[0]) == set(comparison.COLUMNS)


def test_reference_is_found_by_its_name():
  rows = front([(5, 0.5)]) + front([(5, 0.6)], **TOPK)
  assert comparison.reference_of(rows, 'jumprelu') == ('jumprelu', 'l0')
  assert comparison.reference_of(rows, 'topk') == ('topk', 'aux_k')
  more = [*rows, *front([(5, 0.5)], objective='tanh')]
  assert comparison.reference_of(more, 'jumprelu') == ('jumprelu', 'l0')
  assert comparison.reference_of(more, 'jumprelu/tanh')[1] == 'tanh'


def test_no_reference_is_an_input_error():
  rows = front([(5, 0.6)], **TOPK)
  with pytest.raises(errors.InputError, match=r'no jumprelu .* topk/aux_k\.'):
    comparison.reference_of(rows, 'jumprelu')
  rows += front([(5, 0.5)], objective='tanh')
  rows += front([(5, 0.5)], objective='target_l0')
  with pytest.raises(errors.InputError, match='2 jumprelu .*jumprelu/tanh'):
    comparison.reference_of(rows, 'jumprelu')


@pytest.mark.parametrize(('seeds', 'share'), [(2, 0.53), (5, 0.84), (10, 0.9)])
def test_intervals_cover_as_often_as_is_said(seeds, share):
  draws = np.random.default_rng(2).normal(size=(300, seeds))
  covered = 0
  for differences in draws:
    low, high, _ = comparison.interval(differences)
    covered += low <= 0 <= high
  assert covered / 300 == pytest.approx(share, abs=0.08)
