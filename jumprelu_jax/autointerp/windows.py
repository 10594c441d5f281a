"""Windows of text with one latent's activations, and their two halves.

What explains a latent must not be what the explanation is scored on. So of
windows that overlap in the text only one is kept, and the rest are dealt out to
the two halves.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses

import numpy as np

from jumprelu_jax.records import schema

#: The stratum of windows that were drawn without regard to the latent.
BACKGROUND = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Window:
  """Some consecutive tokens.

  Attributes:
    tokens_L: ids, whole numbers.
    activations_L: the latent's, float64; 0 where it does not fire.
    stratum: as in `records.schema`, or BACKGROUND.
    sequence: row of the packed text.
    start: position of the first token in it.
  """

  tokens_L: np.ndarray
  activations_L: np.ndarray
  stratum: int = BACKGROUND
  sequence: int = 0
  start: int = 0

  @property
  def stop(self) -> int:
    """Position after its last token."""
    return self.start + len(self.tokens_L)

  @property
  def fires(self) -> bool:
    """Whether the latent fires anywhere in it."""
    return bool((self.activations_L > 0).any())


class Taken:
  """Places in the text that are taken; grows in place."""

  def __init__(self, windows: Iterable[Window] = ()):
    """Takes the places of some windows."""
    self._spans = {}
    for window in windows:
      self.add(window)

  def add(self, window: Window) -> None:
    """Takes a window's place."""
    spans = self._spans.setdefault(window.sequence, [])
    spans.append((window.start, window.stop))

  def overlaps(self, window: Window) -> bool:
    """Whether a position of a window is taken."""
    spans = self._spans.get(window.sequence, ())
    return any(a < window.stop and window.start < b for a, b in spans)


def disjoint(windows: Iterable[Window]) -> list[Window]:
  """Returns windows no two of which overlap; the first of those that do."""
  taken, kept = Taken(), []
  for window in windows:
    if not taken.overlaps(window):
      taken.add(window)
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
