"""A uniform sample of pieces of the text, with all that fires in them.

Letters beyond `firings`: G windows, E firings in them.
"""

from __future__ import annotations

import numpy as np

from jumprelu_jax.records import firings as firings_lib
from jumprelu_jax.records import hashing

_WINDOWS = 2  # purpose of the hash, to which the width is added


class Windows:
  """Windows that are drawn without regard to any latent.

  Windows of one width that do not overlap; those with the smallest hashes are
  kept. Memory: at most twice `size` windows, 16 bytes each and 16 for each
  firing in them.

  Attributes:
    start_G: int64, where each begins in the text: n * L + l.
    hash_G: uint64.
    place_E: int64, of firings in the windows: n * L + l.
    latent_E: int32.
    value_E: float32.
  """

  def __init__(self, size: int, width: int, seed: int):
    self._size, self.width, self._seed = size, width, seed
    self.start_G = np.empty(0, np.int64)
    self.hash_G = np.empty(0, np.uint64)
    self.place_E = np.empty(0, np.int64)
    self.latent_E = np.empty(0, np.int32)
    self.value_E = np.empty(0, np.float32)
    self._waiting, self._num_waiting = [], 0
    self._bound = hashing.NOTHING

  def add(self, firings: firings_lib.Firings) -> None:
    """Adds a batch."""
    start_G = self._starts(firings.is_text_BL)
    purpose = _WINDOWS + self.width
    hash_G = hashing.of(self._seed, purpose, start_G + firings.origin)
    is_in_G = hash_G < self._bound
    start_G, hash_G = start_G[is_in_G], hash_G[is_in_G]
    is_in_N = np.zeros(firings.is_text_BL.size, bool)
    is_in_N[start_G[:, None] + np.arange(self.width)] = True
    is_in_F = is_in_N[firings.place_F]
    self._wait(
      start_G + firings.origin,
      hash_G,
      firings.place_F[is_in_F] + firings.origin,
      firings.latent_F[is_in_F].astype(np.int32),
      firings.value_F[is_in_F],
    )

  def merge(self, other: Windows) -> None:
    """Adds what another part of the text has given."""
    self._wait(*other.arrays().values())

  def settle(self) -> None:
    """Merges in what waits; windows are then in the order of their hashes.

    That order is random, so the first few are a uniform sample as well. Firings
    are in the order of the text, and then of the latents.
    """
    parts = [tuple(self._arrays().values()), *self._waiting]
    self._waiting, self._num_waiting = [], 0
    start_G, hash_G, place_E, latent_E, value_E = map(
      np.concatenate, zip(*parts, strict=True)
    )
    kept_G = np.argsort(hash_G)[: self._size]
    is_in_E = np.zeros(len(place_E), bool)
    if len(kept_G):
      by_start = np.sort(start_G[kept_G])
      before_E = np.searchsorted(by_start, place_E, side='right') - 1
      is_in_E = (before_E >= 0) & (place_E - by_start[before_E] < self.width)
    order_E = np.flatnonzero(is_in_E)
    order_E = order_E[np.lexsort((latent_E[order_E], place_E[order_E]))]
    self.start_G, self.hash_G = start_G[kept_G], hash_G[kept_G]
    self.place_E, self.latent_E = place_E[order_E], latent_E[order_E]
    self.value_E = value_E[order_E]
    self._set_bound()

  def arrays(self) -> dict[str, np.ndarray]:
    """Returns its arrays, settled, by name."""
    self.settle()
    return self._arrays()

  def restore(self, arrays: dict[str, np.ndarray]) -> None:
    """Takes over what `arrays` gave."""
    vars(self).update(arrays)
    self._set_bound()

  def _arrays(self):
    names = ('start_G', 'hash_G', 'place_E', 'latent_E', 'value_E')
    return {name: getattr(self, name) for name in names}

  def _set_bound(self):
    if len(self.hash_G) == self._size:
      self._bound = self.hash_G[-1]

  def _starts(self, is_text_BL):
    """Returns places in a batch where windows begin that are mostly text."""
    B, L = is_text_BL.shape
    first = L % self.width  # so the last ends with the sequence
    is_text_BGW = is_text_BL[:, first:].reshape(B, -1, self.width)
    sequence, window = np.nonzero(2 * is_text_BGW.sum(axis=2) > self.width)
    return sequence * L + first + window * self.width

  def _wait(self, *arrays):
    self._waiting.append(arrays)
    self._num_waiting += len(arrays[0])
    if self._num_waiting >= self._size:
      self.settle()
