"""A random order that does not depend on what was seen before.

What has the smallest hashes is a uniform sample: the same one in whatever order
things come, and samples of parts merge to that of the whole (bottom-k sampling;
Cohen and Kaplan 2007, "Summarizing data using bottom-k sketches").
"""

from __future__ import annotations

import numpy as np

#: Larger than the hash of anything.
NOTHING = np.uint64(2**64 - 1)

_STEP = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd


def of(seed: int, purpose: int, *keys: np.ndarray) -> np.ndarray:
  """Returns a hash for each element, uint64, below NOTHING.

  Args:
    seed: of all samples.
    purpose: a number of its own for each sample, so that they do not depend on
      each other.
    *keys: whole numbers >= 0, arrays of one shape; together they name an
      element.
  """
  state = _mix(np.array([seed], np.uint64) + _STEP)
  state = _mix(state ^ np.uint64(purpose))
  for key in keys:
    state = _mix(state ^ key.astype(np.uint64))
  return np.minimum(state, NOTHING - np.uint64(1))


def _mix(state):
  """Scrambles 64 bits, one to one (splitmix64; Steele et al. 2014)."""
  state = state + _STEP
  state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return state ^ (state >> np.uint64(31))
