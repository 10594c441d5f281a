"""Metrics of steps → records of a training curve; the steps of an interval."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

#: Metrics by name: of one SAE a number each, of several that one program trains
#: [K].
Metrics = Mapping[str, np.ndarray]


def means(steps: Sequence[Metrics]) -> list[dict[str, float]]:
  """Returns each SAE's means over steps.

  Steps that were left out ('fault') are in no mean, and where all were it is
  NaN; 'bad_batches' is what it was last.

  Args:
    steps: metrics of one step or more.
  """
  columns = {
    name: np.array([np.atleast_1d(metrics[name]) for metrics in steps])
    for name in steps[0]
  }
  is_good_NK = columns.pop('fault') == 0
  last = columns.pop('bad_batches')[-1]
  found = []
  for i, bad_batches in enumerate(last):
    of_one = {
      name: _mean(column_NK, is_good_NK[:, i], i)
      for name, column_NK in columns.items()
    }
    found.append(of_one | {'bad_batches': int(bad_batches)})
  return found


def of_one(steps: Sequence[Metrics], i: int) -> list[dict[str, float]]:
  """Returns one SAE's metrics of each step as JSON that loses no bit."""
  return [
    {name: float(np.atleast_1d(value)[i]) for name, value in metrics.items()}
    for metrics in steps
  ]


def stacked(metrics: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
  """Returns several SAEs' metrics of a step, of `of_one`, as one; float32."""
  names = metrics[0]
  return {
    name: np.array([of_one[name] for of_one in metrics], np.float32)
    for name in names
  }


def _mean(column_NK, is_good_N, i):
  if not is_good_N.any():
    return float('nan')
  return float(np.mean(column_NK[is_good_N], axis=0)[i])
