"""Shares of Yes, Maybe and No, with intervals."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence
import math

import numpy as np
from scipy import stats

from jumprelu_jax import finished
from jumprelu_jax.ratings import answers
from jumprelu_jax.ratings import rated

# What rows are counted by; a blank cell is all.
_GROUPS = ((), ('architecture',), ('sparsity',), ('architecture', 'sparsity'))
_Z = float(stats.norm.ppf(0.975))


def table(rows: Sequence[rated.Row]) -> list[dict[str, object]]:
  """Returns how often each answer was given.

  Args:
    rows: from `rated.rows`.

  Returns:
    A row for each rating in all rows, for each architecture, each sparsity, and
    each of both ('' for all): count, of how many ratings, of how many latents,
    share, low, high and design_effect as from `interval`.
  """
  found = []
  for names in _GROUPS:
    for values, of_one in finished.groups(rows, names).items():
      place = {'architecture': '', 'sparsity': ''}
      place |= dict(zip(names, values, strict=True))
      for rating in reversed(answers.RATINGS):
        found.append(place | {'rating': rating} | _count(of_one, rating))
  return found


def interval(
  counts: Iterable[tuple[int, int]],
) -> tuple[float, float, float, float]:
  """Returns a share with Wilson's 95% interval, and the design effect.

  Several raters' answers to one latent are no independent draws of latents. The
  variance of the share over latents, as of a ratio, over that of independent
  draws is the design effect; the interval is Wilson's (1927) for as many
  ratings divided by it. It is 1, and the interval the plain binomial one, where
  no latent is rated twice; and never taken to be less.

  Wilson's, for it is never empty, nor beyond 0 and 1, and of 45 ratings covers
  the truth with 95.2%, a mean over shares from 0.1 to 0.9; Clopper and
  Pearson's covers it with 96.8% and is 9% wider.

  Args:
    counts: for each latent, how many of its ratings are such, and how many it
      has; one rating at least.

  Returns:
    Share, low, high, design effect.
  """
  hits_L, ratings_L = np.array(list(counts), float).T
  total = ratings_L.sum()
  share = hits_L.sum() / total
  if 0 < share < 1 and len(hits_L) > 1:
    spread = np.sum((hits_L - share * ratings_L) ** 2)
    effect = spread / (share * (1 - share) * total)
  else:  # the ratings do not say; at most, all of a latent always agree
    effect = np.sum(ratings_L**2) / total
  effect = max(1.0, float(effect))
  low, high = _wilson(share, total / effect)
  return float(share), low, high, effect


def _wilson(share, n):
  """Returns Wilson's 95% interval of a share of n, which need not be whole."""
  centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
  variance = share * (1 - share) / n + _Z**2 / (4 * n**2)
  half = _Z * math.sqrt(variance) / (1 + _Z**2 / n)
  # The ends are exact where rounding is not.
  low = 0.0 if share == 0 else float(centre - half)
  high = 1.0 if share == 1 else float(centre + half)
  return low, high


def _count(rows, rating):
  of_latents = finished.groups(rows, ('item',)).values()
  counts = [
    (sum(row['rating'] == rating for row in of_one), len(of_one))
    for of_one in of_latents
  ]
  share, low, high, effect = interval(counts)
  return {
    'count': sum(hits for hits, _ in counts),
    'ratings': len(rows),
    'latents': len(counts),
    'share': share,
    'low': low,
    'high': high,
    'design_effect': effect,
  }
