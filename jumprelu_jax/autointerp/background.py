"""The background windows of a folder of records, one latent's at a time."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from jumprelu_jax.autointerp import windows as windows_lib
from jumprelu_jax.autointerp.windows import Window


class Background:
  """All background windows, split for good into those to fit and to score on.

  Attributes:
    fitting: indices of windows to fit on.
    scoring: indices of windows to score on; no two of all these overlap.
  """

  def __init__(self, table: pa.Table, seed: int):
    """Reads `records.schema`'s background; the split is by the seed alone."""
    table = table.sort_by([('window', 'ascending'), ('offset', 'ascending')])
    self._num_tokens = len(table)
    self._rows, self._windows = _windows(table)
    self._by_latent = _by_latent(table)
    taken, kept = windows_lib.Taken(), []
    for index, window in enumerate(self._windows):
      if not taken.overlaps(window):
        taken.add(window)
        kept.append(index)
    order = np.random.default_rng((seed, 1)).permutation(kept).tolist()
    self.fitting, self.scoring = sorted(order[::2]), sorted(order[1::2])

  def of_latent(
    self, latent: int, indices: Sequence[int], away_from: Iterable[Window]
  ) -> list[Window]:
    """Returns windows with a latent's activations.

    Args:
      latent: which.
      indices: `fitting` or `scoring`.
      away_from: windows of the other half; what overlaps them is left out.
    """
    taken = windows_lib.Taken(away_from)
    latent_F, place_F, activation_F = self._by_latent
    low, high = np.searchsorted(latent_F, (latent, latent + 1))
    activations_T = np.zeros(self._num_tokens)
    activations_T[place_F[low:high]] = activation_F[low:high]
    return [
      windows_lib.Window(
        window.tokens_L,
        activations_T[self._rows[i]],
        sequence=window.sequence,
        start=window.start,
      )
      for i in indices
      if not taken.overlaps(window := self._windows[i])
    ]


def _windows(table):
  """Returns each window's rows in the table, and itself, silent."""
  window_T, token_T, sequence_T, start_T = (
    table[name].to_numpy() for name in ('window', 'token', 'sequence', 'start')
  )
  _, starts = np.unique(window_T, return_index=True)
  ends = np.append(starts[1:], len(window_T))
  rows = [slice(low, high) for low, high in zip(starts, ends, strict=True)]
  windows = [
    Window(
      token_T[some],
      np.zeros(some.stop - some.start),
      sequence=int(sequence_T[some.start]),
      start=int(start_T[some.start]),
    )
    for some in rows
  ]
  return rows, windows


def _by_latent(table):
  """Returns latents, places in the table and activations of all firings.

  In order of the latents.
  """
  lists = table['latents'].combine_chunks()
  counts_T = np.diff(lists.offsets.to_numpy())
  place_F = np.repeat(np.arange(len(counts_T)), counts_T)
  latent_F = lists.flatten().to_numpy()
  activation_F = table['activations'].combine_chunks().flatten().to_numpy()
  order = np.argsort(latent_F, kind='stable')
  return latent_F[order], place_F[order], activation_F[order]
