"""Architectures held against each other, rating by rating."""

from __future__ import annotations

from collections.abc import Sequence
import itertools

import numpy as np
from scipy import stats

from jumprelu_jax import finished
from jumprelu_jax.ratings import rated

#: What two ratings share to be a pair.
PAIRED_BY = ('rater', 'site', 'layer', 'sparsity')


def table(rows: Sequence[rated.Row]) -> list[dict[str, object]]:
  """Returns the differences between every two architectures.

  Args:
    rows: from `rated.rows`.

  Returns:
    For each two: how many pairs there are, how many differ, and what `compare`
    finds. Architectures that share no cell are left out.
  """
  cells = {}
  groups = finished.groups(rows, ('architecture', *PAIRED_BY))
  for key, of_one in groups.items():
    scores = [row['score'] for row in of_one]
    cells.setdefault(key[0], {})[key[1:]] = float(np.mean(scores))
  found = []
  for (a, of_a), (b, of_b) in itertools.combinations(cells.items(), 2):
    common = sorted(of_a.keys() & of_b.keys())
    if common:
      difference_P = np.array([of_a[cell] - of_b[cell] for cell in common])
      found.append({'architecture': a, 'less': b, **compare(difference_P)})
  return found


def compare(difference_P: np.ndarray) -> dict[str, object]:
  """Returns the mean of paired differences, and a test that they centre on 0.

  The test is Wilcoxon's signed-rank test, two-sided, with Pratt's (1959)
  treatment of zeros: they are ranked, and their ranks dropped; its p is of the
  normal approximation, corrected for zeros (Cureton 1967) and ties, for scores
  have many of both. The interval of the mean is Student's.

  Args:
    difference_P: of pairs, one at least.

  Returns:
    pairs, differ (pairs whose difference is not 0), mean_difference, low and
    high (its 95% interval; None for a single pair), statistic (the lesser of
    the sums of ranks) and p. With no difference at all p is 1.
  """
  count = len(difference_P)
  mean = float(np.mean(difference_P))
  low = high = None
  if count > 1:
    error = float(np.std(difference_P, ddof=1)) / count**0.5
    half = float(stats.t.ppf(0.975, count - 1)) * error
    low, high = mean - half, mean + half
  statistic, p = 0.0, 1.0
  if np.any(difference_P):
    found = stats.wilcoxon(
      difference_P, zero_method='pratt', correction=False, method='asymptotic'
    )
    statistic, p = float(found.statistic), float(found.pvalue)
  return {
    'pairs': count,
    'differ': int(np.count_nonzero(difference_P)),
    'mean_difference': mean,
    'low': low,
    'high': high,
    'statistic': statistic,
    'p': p,
  }
