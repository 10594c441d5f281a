"""The positions of the largest norms, which may decide a variance alone.

A few attention sinks may carry nearly all of it. The top is 0.1% of the
positions, and all whose norm equals the least of theirs; the rest is measured
by sums of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import math

import jax
from jax import numpy as jnp
import numpy as np

_SHARE = 1e-3
# Norms that are kept, those of the top of a billion positions.
_MOST_NORMS = 2**20
# Norms that differ by less than this share are equal.
_ROUNDING = 1e-5


@dataclasses.dataclass(frozen=True, eq=False)
class Largest:
  """The largest of some numbers; adds up as sums do."""

  values: np.ndarray

  def __add__(self, other: Largest) -> Largest:
    """Returns the largest of both."""
    both = np.concatenate([self.values, other.values])
    if len(both) > _MOST_NORMS:
      both = np.partition(both, -_MOST_NORMS)[-_MOST_NORMS:]
    return Largest(both)

  def at(self, count: int) -> float:
    """Returns the count-th largest, or the least of fewer."""
    count = min(count, len(self.values))
    return float(np.partition(self.values, -count)[-count]) if count else 0.0


def least_norm(norms: Largest, positions: int) -> float:
  """Returns the norm from which on a position belongs to the top."""
  return norms.at(math.ceil(_SHARE * positions)) * (1 - _ROUNDING)


def rest(
  y_ND: jax.Array,
  pivot_D: jax.Array,
  is_text_N: jax.Array,
  top_norm: jax.Array | float,
) -> dict[str, jax.Array]:
  """Returns which text positions are not of the top, and their sum.

    is_rest_N         bool
    rest_deviation_D  sum of y - pivot over them

  Arguments as `metrics.totals`; `top_norm` is `least_norm`.
  """
  is_rest_N = is_text_N & (jnp.linalg.norm(y_ND, axis=-1) < top_norm)
  deviation_ND = jnp.where(is_rest_N[:, None], y_ND - pivot_D[None], 0)
  return {
    'is_rest_N': is_rest_N,
    'rest_deviation_D': jnp.sum(deviation_ND, axis=0),
  }


def variations(sums: Mapping[str, object]) -> tuple[float, float]:
  """Returns sums of |y - a|^2 over the rest.

  With a the mean of all positions, and with a the mean of the rest.
  """
  n, rest = sums['positions'], sums['rest_positions']
  deviation_D = sums['rest_deviation_D']
  mean_D = sums['deviation_D'] / max(n, 1)
  with np.errstate(invalid='ignore'):  # of a model that is not finite
    about_all = np.sum(mean_D * (2 * deviation_D - rest * mean_D))
    about_own = np.sum(deviation_D**2) / max(rest, 1)
    about_pivot = sums['rest_squared_deviation']
    return about_pivot - about_all, about_pivot - about_own
