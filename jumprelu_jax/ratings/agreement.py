"""How far raters agree: Cohen's kappa of pairs, Krippendorff's alpha of all."""

from __future__ import annotations

from collections.abc import Sequence
import itertools

import numpy as np

from jumprelu_jax import finished
from jumprelu_jax.ratings import rated


def table(rows: Sequence[rated.Row]) -> list[dict[str, object]]:
  """Returns agreement on the items that several raters have answered.

  Args:
    rows: from `rated.rows`.

  Returns:
    A row for each two raters with a common item: items, the share on which they
    say the same, kappa, and kappa with linear weights (None where undefined);
    and last one of 'all' raters: items, the share of pairs of answers that are
    the same, and alpha. [] without common items.
  """
  by_rater = {}
  for row in rows:
    by_rater.setdefault(row['rater'], {})[row['item']] = row['score']
  found = []
  for (a, of_a), (b, of_b) in itertools.combinations(by_rater.items(), 2):
    common = sorted(of_a.keys() & of_b.keys())
    if common:
      pair = [[of_one[item] for item in common] for of_one in (of_a, of_b)]
      found.append({'rater': a, 'other': b, **_of_pair(*pair), 'alpha': None})
  return [*found, _of_all(rows)] if found else []


def kappa(
  first: Sequence[int], second: Sequence[int], *, is_weighted: bool = False
) -> float | None:
  """Returns Cohen's kappa: 1 − disagreement over that expected by chance.

  Cohen 1960; 1968 with weights, here |i − j| for answers i and j, so that No
  against Yes counts twice as much as No against Maybe.

  Args:
    first: one rater's scores 0, 1, 2, …
    second: another's, of the same items.
    is_weighted: whether it matters how far apart two answers are.

  Returns:
    None where chance alone would give no disagreement: both always say the
    same one.
  """
  size = 1 + max(*first, *second)
  observed_KK = np.zeros((size, size))
  np.add.at(observed_KK, (list(first), list(second)), 1 / len(first))
  expected_KK = np.outer(observed_KK.sum(1), observed_KK.sum(0))
  distance_KK = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
  weight_KK = distance_KK if is_weighted else distance_KK > 0
  by_chance = np.sum(weight_KK * expected_KK)
  if by_chance == 0:
    return None
  return float(1 - np.sum(weight_KK * observed_KK) / by_chance)


def alpha(units: Sequence[Sequence[int]]) -> float | None:
  """Returns Krippendorff's alpha for ordinal scores.

  Krippendorff 2011, Computing Krippendorff's Alpha-Reliability:
    alpha = 1 − (n − 1) Σ o_ck d_ck / Σ n_c n_k d_ck over c < k,
    d_ck = (n_c / 2 + n_(c+1) + … + n_(k−1) + n_k / 2)²,
  where o_ck counts pairs of scores within a unit, each weighing 1 over one less
  than the unit's number of scores, and n_c are o's sums.

  Args:
    units: for each item its scores 0, 1, 2, …; those with fewer than two do not
      count.

  Returns:
    None where it is undefined: all scores are the same, or no item has two.
  """
  units = [scores for scores in units if len(scores) > 1]
  if not units:
    return None
  size = 1 + max(max(scores) for scores in units)
  o_KK = np.zeros((size, size))
  for scores in units:
    for pair in itertools.permutations(scores, 2):
      o_KK[pair] += 1 / (len(scores) - 1)
  n_K = o_KK.sum(1)
  below_K = np.cumsum(n_K) - n_K / 2
  d_KK = np.subtract.outer(below_K, below_K) ** 2
  expected = np.sum(np.outer(n_K, n_K) * d_KK)
  if expected == 0:
    return None
  return float(1 - (n_K.sum() - 1) * np.sum(o_KK * d_KK) / expected)


def _of_pair(first, second):
  return {
    'items': len(first),
    'agreement': float(np.mean(np.equal(first, second))),
    'kappa': kappa(first, second),
    'kappa_linear': kappa(first, second, is_weighted=True),
  }


def _of_all(rows):
  groups = finished.groups(rows, ('item',)).values()
  units = [[row['score'] for row in of_one] for of_one in groups]
  units = [scores for scores in units if len(scores) > 1]
  pairs = [p for scores in units for p in itertools.combinations(scores, 2)]
  return {
    'rater': 'all',
    'other': 'all',
    'items': len(units),
    'agreement': float(np.mean([a == b for a, b in pairs])),
    'kappa': None,
    'kappa_linear': None,
    'alpha': alpha(units),
  }
