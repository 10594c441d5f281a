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
    scoring: indices of windows to score on; none has a run of tokens in common
      with those to fit on.
  """

  def __init__(self, table: pa.Table, seed: int):
    """Reads `records.schema`'s background; the split is by the seed alone."""
    table = table.sort_by([('window', 'ascending'), ('offset', 'ascending')])
    window_T = table['window'].to_numpy()
    tokens_T = table['token'].to_numpy()
    _, starts = np.unique(window_T, return_index=True)
    self._ends = np.append(starts[1:], len(tokens_T))
    self._starts, self._tokens_T = starts, tokens_T
    self._by_latent = _by_latent(table)
    self._with_run = {}
    for index in range(len(starts)):
      for run in windows_lib.runs_of(self.tokens(index)):
        self._with_run.setdefault(run, []).append(index)
    order = np.random.default_rng((seed, 1)).permutation(len(starts)).tolist()
    self.fitting = sorted(order[::2])
    near = self._near(self.tokens(index) for index in self.fitting)
    self.scoring = [i for i in sorted(order[1::2]) if i not in near]

  def tokens(self, index: int) -> np.ndarray:
    """Returns a window's token ids [L]."""
    return self._tokens_T[self._starts[index] : self._ends[index]]

  def of_latent(
    self, latent: int, indices: Sequence[int], away_from: Iterable[Window]
  ) -> list[Window]:
    """Returns windows with a latent's activations.

    Args:
      latent: which.
      indices: `fitting` or `scoring`.
      away_from: windows of the other half; what has a run of tokens in common
        with one of them is left out.
    """
    near = self._near(window.tokens_L for window in away_from)
    latent_F, place_F, activation_F = self._by_latent
    low, high = np.searchsorted(latent_F, (latent, latent + 1))
    activations_T = np.zeros(len(self._tokens_T))
    activations_T[place_F[low:high]] = activation_F[low:high]
    return [
      Window(
        self.tokens(i), activations_T[self._starts[i] : self._ends[i]].copy()
      )
      for i in indices
      if i not in near
    ]

  def _near(self, tokens):
    """Returns the windows that have a run in common with some tokens."""
    return {
      index
      for tokens_L in tokens
      for run in windows_lib.runs_of(tokens_L)
      for index in self._with_run.get(run, ())
    }


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
