"""The statistics of ratings, against hand calculations and scipy."""

import itertools
import math

from helpers import drawn_text
import numpy as np
import pytest
from scipy import stats

from jumprelu_jax.plot import ratings as figure
from jumprelu_jax.ratings import agreement
from jumprelu_jax.ratings import differences
from jumprelu_jax.ratings import rates


def test_wilsons_interval():
  # Newcombe 1998, table I: 81 of 263.
  share, low, high, effect = rates.interval([(1, 1)] * 81 + [(0, 1)] * 182)
  assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
  assert share == pytest.approx(81 / 263)
  assert effect == pytest.approx(1)
  for k, n in [(0, 9), (9, 9), (3, 7)]:
    want = stats.binomtest(k, n).proportion_ci(method='wilson')
    got = rates.interval([(1, 1)] * k + [(0, 1)] * (n - k))
    assert got[1:3] == pytest.approx((want.low, want.high))
    assert (got[1] == 0, got[2] == 1) == (k == 0, k == n)


def test_ratings_of_one_latent_are_no_independent_draws():
  # Two latents, one with 2 of 2 and one with 0 of 2: the share is 1/2, its
  # variance over latents (1 + 1)/4² = 1/8, of independent draws 1/16.
  share, low, high, effect = rates.interval([(2, 2), (0, 2)])
  want = stats.binomtest(1, 2).proportion_ci(method='wilson')
  assert (share, effect) == (0.5, pytest.approx(2))
  assert (low, high) == pytest.approx((want.low, want.high))
  # Raters who disagree as often as can be make it no narrower than binomial.
  assert rates.interval([(1, 2), (1, 2)])[3] == 1
  # A single latent is one draw, however many raters it has.
  assert rates.interval([(2, 3)])[3] == 3
  # 6 of 6 from two latents are as 2 of 2.
  want = stats.binomtest(2, 2).proportion_ci(method='wilson')
  assert rates.interval([(3, 3), (3, 3)])[1:3] == pytest.approx(
    (want.low, want.high)
  )


def test_intervals_cover_the_truth_where_raters_overlap():
  """Latents are yes or no, for all five raters alike; a third is common."""
  rng = np.random.default_rng(0)
  hits = 0
  for _ in range(1000):
    common, own = rng.random(12) < 0.6, rng.random(5 * 15) < 0.6
    counts = [(5 * int(c), 5) for c in common] + [(int(o), 1) for o in own]
    _, low, high, _ = rates.interval(counts)
    hits += low <= 0.6 <= high
  # A binomial interval of all 135 ratings covers it with about 0.8.
  assert 0.925 < hits / 1000 < 0.975


def test_kappa_by_hand():
  # 25 by 25: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no (agreement 0.7, 0.5 by
  # chance).
  table = [(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 10 + [(0, 0)] * 15
  first, second = zip(*table, strict=True)
  assert agreement.kappa(first, second) == pytest.approx(0.4)
  # Of five, 2 disagree where chance gives 17/25; by steps 3/5 and 23/25.
  first, second = (0, 0, 1, 2, 2), (0, 1, 1, 2, 0)
  assert agreement.kappa(first, second) == pytest.approx(1 - 0.4 / 0.68)
  assert agreement.kappa(first, second, is_weighted=True) == pytest.approx(
    1 - 0.6 / 0.92
  )
  assert agreement.kappa((0, 1, 2), (0, 1, 2)) == 1
  assert agreement.kappa((1, 1), (1, 1)) is None


def test_alpha_is_that_of_krippendorffs_example():
  # Krippendorff 2011, C: four observers, twelve units, '.' for none.
  table = ['12332141 2...', '12332241 25.3', '.3332342 251.', '12332441 251.']
  observers = [row.replace(' ', '') for row in table]
  units = [
    [int(score) - 1 for score in unit if score != '.']
    for unit in zip(*observers, strict=True)
  ]
  assert round(agreement.alpha(units), 3) == 0.815


def test_alpha_by_hand_and_its_ends():
  # Two raters, (0, 0), (0, 2), (2, 2): n_0 = n_2 = 3 of n = 6; o_02 = 1, so
  # alpha = 1 − 5 · 1 · d / (9 · d) = 4/9.
  assert agreement.alpha([[0, 0], [0, 2], [2, 2]]) == pytest.approx(4 / 9)
  assert agreement.alpha([[0, 0], [1, 1], [2, 2, 2]]) == 1
  assert agreement.alpha([[0, 2], [2, 0]]) < 0
  assert agreement.alpha([[1, 1], [1, 1]]) is None
  assert agreement.alpha([[1], [2]]) is None
  rng = np.random.default_rng(0)
  assert abs(agreement.alpha(rng.integers(0, 3, (4000, 3)).tolist())) < 0.03


def test_pratts_test_by_hand():
  # Ranks of |0 0 1 1 −1 2| are 1.5 1.5 4 4 4 6; without the zeros' 14 and 4.
  # Mean (6·7 − 2·3)/4 = 9, variance (6·7·13 − 2·3·5)/24 − (3³ − 3)/48 = 21.
  found = differences.compare(np.array([0.0, 0, 1, 1, -1, 2]))
  assert found['statistic'] == 4
  assert found['p'] == pytest.approx(math.erfc(5 / math.sqrt(21) / 2**0.5))
  assert (found['pairs'], found['differ']) == (6, 4)
  assert found['mean_difference'] == 0.5
  # The standard deviation is sqrt(5.5/5), and t of 5 at 97.5% is 2.570582.
  half = 2.570582 * math.sqrt(5.5 / 5 / 6)
  assert found['low'] == pytest.approx(0.5 - half)
  assert found['high'] == pytest.approx(0.5 + half)


def test_no_difference_and_a_single_pair():
  assert differences.compare(np.zeros(9))['p'] == 1
  found = differences.compare(np.array([2.0]))
  assert (found['low'], found['high'], found['pairs']) == (None, None, 1)


def test_differences_are_paired_by_rater_and_cell():
  def row(rater, architecture, score, sparsity=20.0, layer=1):
    return {
      'rater': rater, 'architecture': architecture, 'score': score,
      'site': 'resid_post', 'layer': layer, 'sparsity': sparsity,
    }  # fmt: skip

  rows = [
    row('ann', 'gated', 0), row('ann', 'topk', 2),  # −2
    row('bob', 'gated', 2), row('bob', 'topk', 1),  # +1
    row('bob', 'gated', 1, layer=2), row('bob', 'gated', 2, layer=2),
    row('bob', 'topk', 1, layer=2),  # 1.5 − 1
    row('ann', 'gated', 2, sparsity=75.0),  # has no other
    row('cy', 'topk', 2),
  ]  # fmt: skip
  (found,) = differences.table(rows)
  assert (found['architecture'], found['less']) == ('gated', 'topk')
  assert found['pairs'] == 3
  assert found['mean_difference'] == pytest.approx((-2 + 1 + 0.5) / 3)


def test_the_figure_shows_the_tables_numbers():
  rows = [
    {
      'rater': 'ann', 'item': f'{a}{s}{k}', 'architecture': a, 'sparsity': s,
      'rating': 'yes' if k < yes else 'no',
    }
    for (a, s), yes in zip(
      itertools.product(('gated', 'topk'), (20.0, 75.0)), (1, 2, 3, 4),
      strict=True,
    )
    for k in range(4)
  ]  # fmt: skip
  table = rates.table(rows)
  drawn = figure.draw(table, 'title')
  left, right = drawn.axes
  heights = [[bar.get_height() for bar in c] for c in left.containers]
  assert heights == [[3 / 8, 0, 5 / 8], [7 / 8, 0, 1 / 8]]
  heights = [[bar.get_height() for bar in c] for c in right.containers]
  assert heights == [[0.25, 0.5], [0.75, 1]]
  texts = {text for text, _ in drawn_text.extents(drawn)}
  assert {'Yes', 'Maybe', 'No', '20', '75', 'gated', 'topk'} <= texts
  assert not drawn_text.overlaps(drawn)
