"""Windows of text with one latent's activations, and their two halves.

What explains a latent must not be what the explanation is scored on. So of
windows that overlap in the text only one is kept, and the rest are dealt out to
the two halves. Windows of the background carry no place in the text: one that
has a run of tokens in common with the other half is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses

import numpy as np

from jumprelu_jax.records import schema

#: The stratum of windows that were drawn without regard to the latent.
BACKGROUND = -1

# Shorter runs are in common by chance.
_RUN = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Window:
  """Some consecutive tokens.

  Attributes:
    tokens_L: ids, whole numbers.
    activations_L: the latent's, float64; 0 where it does not fire.
    stratum: as in `records.schema`, or BACKGROUND.
    sequence: row of the packed text; for examples.
    start: position of the first token in it; for examples.
  """

  tokens_L: np.ndarray
  activations_L: np.ndarray
  stratum: int = BACKGROUND
  sequence: int = -1
  start: int = -1

  @property
  def fires(self) -> bool:
    """Whether the latent fires anywhere in it."""
    return bool((self.activations_L > 0).any())


def disjoint(windows: Iterable[Window]) -> list[Window]:
  """Returns windows no two of which overlap; the first of those that do."""
  taken, kept = {}, []
  for window in windows:
    span = window.start, window.start + len(window.tokens_L)
    others = taken.setdefault(window.sequence, [])
    if all(span[1] <= low or high <= span[0] for low, high in others):
      others.append(span)
      kept.append(window)
  return kept


def halves(
  windows: Sequence[Window], rng: np.random.Generator
) -> tuple[list[Window], list[Window]]:
  """Deals windows out by chance, each stratum evenly.

  Args:
    windows: that do not overlap.
    rng: consumed.

  Returns:
    Those to explain from, and those to score on: at most one window less.
  """
  order = rng.permutation(len(windows))
  order = sorted(order, key=lambda i: windows[i].stratum)
  return [windows[i] for i in order[::2]], [windows[i] for i in order[1::2]]


def pick(windows: Sequence[Window], count: int) -> list[Window]:
  """Returns up to `count` windows, half of them of the top stratum.

  The other half goes round the quantiles; what one side lacks the other fills.
  0 is all.
  """
  if not count:
    return list(windows)
  top = [window for window in windows if window.stratum == schema.TOP]
  rest = _round([window for window in windows if window.stratum != schema.TOP])
  num_top = max((count + 1) // 2, count - len(rest))
  picked = top[:num_top]
  return picked + rest[: count - len(picked)]


def runs_of(tokens_L: np.ndarray) -> set[bytes]:
  """Returns every run of 8 tokens; none of a window that is shorter."""
  tokens_L = np.ascontiguousarray(tokens_L, 'int32')
  count = len(tokens_L) - _RUN + 1
  return {tokens_L[i : i + _RUN].tobytes() for i in range(max(count, 0))}


def _round(windows):
  """Returns windows in turn from each of their strata."""
  seen, turns = {}, []
  for window in windows:
    turns.append(seen.get(window.stratum, 0))
    seen[window.stratum] = turns[-1] + 1
  order = sorted(
    range(len(windows)), key=lambda i: (turns[i], windows[i].stratum)
  )
  return [windows[i] for i in order]
