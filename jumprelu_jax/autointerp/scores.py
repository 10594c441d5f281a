"""Scores of one latent, and averages of many. All in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jumprelu_jax.autointerp import reasons

_RESAMPLES = 2_000


def pearson(predicted: Sequence[float], truth: Sequence[float]) -> float:
  """Returns the correlation of predicted and true activations of all tokens.

  A constant prediction has no correlation; it says nothing of where the latent
  fires, and gets 0.

  Raises:
    reasons.Unscored: the truth is constant.
  """
  x, y = (np.asarray(values, 'float64') for values in (predicted, truth))
  check_varies(y)
  if np.ptp(x) == 0:
    return 0.0
  x, y = x - x.mean(), y - y.mean()
  return float((x @ y) / np.sqrt((x @ x) * (y @ y)))


def check_varies(truth: np.ndarray) -> None:
  """Raises reasons.Unscored where nothing can be correlated with the truth."""
  if np.ptp(truth) == 0:
    raise reasons.Unscored('constant_truth')


def accuracies(
  said: Sequence[bool], truth: Sequence[bool]
) -> tuple[float, float, float]:
  """Returns balanced accuracy, and the shares of true and of false ones found.

  The first is the mean of the other two, so that answering all alike gets 1/2.
  Both truths are there.
  """
  said, truth = np.asarray(said, bool), np.asarray(truth, bool)
  found_true = float(said[truth].mean())
  found_false = float((~said[~truth]).mean())
  return (found_true + found_false) / 2, found_true, found_false


def average(
  values: Sequence[float], weights: Sequence[float], level: float = 0.95
) -> tuple[float, float, float]:
  """Returns a weighted mean over latents and its bootstrap interval.

  The interval is the percentiles' over 2,000 resamples of the latents, always
  the same ones: it says what another sample of latents would change.

  Args:
    values: one for each latent, at least one.
    weights: ≥ 0 and not all 0; all 1 for the plain mean.
    level: share of resamples inside.
  """
  values, weights = np.asarray(values, float), np.asarray(weights, float)
  rng = np.random.default_rng(0)
  means = []
  for _ in range(_RESAMPLES):
    picked = rng.integers(len(values), size=len(values))
    total = weights[picked].sum()
    if total > 0:
      means.append(weights[picked] @ values[picked] / total)
  tail = 50 * (1 - level)
  low, high = np.percentile(means, (tail, 100 - tail))
  mean = weights @ values / weights.sum()
  return float(mean), float(low), float(high)
