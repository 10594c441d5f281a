"""Rows of two sites side by side: what a transcoder learns from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jumprelu_jax import errors
from jumprelu_jax.activations import formats
from jumprelu_jax.activations import store as store_lib


class PairedStores:
  """Two stores of one harvest as shards (see `batches.Shards`).

  Stores of one harvest hold the same positions in the same order, so row i of
  the one belongs to row i of the other.
  """

  def __init__(self, source: store_lib.Store, target: store_lib.Store):
    """Reads nothing yet.

    Args:
      source: rows that are the input.
      target: rows that are to be predicted.

    Raises:
      errors.InputError: they do not hold the same positions, or dtypes.
    """
    if source.rows_per_shard != target.rows_per_shard:
      raise errors.InputError(
        f'the stores of {source.description.site} and {target.description.site}'
        f' hold {source.num_rows:,} and {target.num_rows:,} rows, expected the '
        'same positions; harvest both sites in one pass, without '
        'config.activations.max_norm_multiple.'
      )
    self._stores = (source, target)
    self.rows_per_shard = source.rows_per_shard
    self.widths = source.widths + target.widths
    self.scales = source.scales + target.scales

  def open(self, index: int) -> formats.Reader:
    """Returns the rows of a shard, [N, D + E]."""
    return _SideBySide([store.open(index) for store in self._stores])


class _SideBySide:
  """Two readers as one."""

  def __init__(self, readers: Sequence[formats.Reader]):
    self._readers = readers

  def __len__(self) -> int:
    return len(self._readers[0])

  def __getitem__(self, rows: slice) -> np.ndarray:
    return np.concatenate([reader[rows] for reader in self._readers], axis=1)
