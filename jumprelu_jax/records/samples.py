"""A bounded sample of each latent's firings, with the text around them.

A firing has a key, and of each latent those with the smallest keys are kept. So
the largest activations and a uniform sample are the same thing with two kinds
of keys, and neither depends on the order of the text or on how it is divided.

Letters beyond `firings`: R firings kept of a latent.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jumprelu_jax.records import firings as firings_lib
from jumprelu_jax.records import hashing

_UNIFORM = 1  # purpose of the hash
# Candidates for each latent that wait until they are merged in: merging costs
# as much as all that is kept, so it has to be seldom.
_WAITING = 8
_FEWEST_WAITING = 2**16


class Entries(NamedTuple):
  """Firings and their windows.

  Attributes:
    latent_C, key_C, sequence_C, position_C: one for each.
    window_CW: activations of the latent around it.
  """

  latent_C: np.ndarray
  key_C: np.ndarray
  sequence_C: np.ndarray
  position_C: np.ndarray
  window_CW: np.ndarray


class Samples:
  """The R firings of each latent that have the smallest keys.

  Its arrays are large and so changed in place: `add` and `merge` do. They take
  M * R * (16 + 4 W) bytes, and what waits to be merged in M * 8 * (24 + 4 W).

  Attributes:
    key_MR: uint64; hashing.NOTHING where a slot is empty. Slots are in no
      order.
    sequence_MR: int32.
    position_MR: int32.
    window_MRW: float32.
  """

  def __init__(self, num_latents: int, size: int, width: int):
    shape = (num_latents, size)
    self.key_MR = np.full(shape, hashing.NOTHING)
    self.sequence_MR = np.zeros(shape, np.int32)
    self.position_MR = np.zeros(shape, np.int32)
    self.window_MRW = np.zeros((*shape, width), np.float32)
    self._largest_key_M = np.full(num_latents, hashing.NOTHING)
    self._waiting, self._num_waiting = [], 0
    self._most_waiting = max(_FEWEST_WAITING, _WAITING * num_latents)

  def add(
    self,
    firings: firings_lib.Firings,
    chosen_C: np.ndarray,
    key_C: np.ndarray,
  ) -> None:
    """Adds firings of a batch.

    Args:
      firings: of the batch.
      chosen_C: indices of those to add, ascending.
      key_C: their keys.
    """
    latent_C = firings.latent_F[chosen_C]
    is_in_C = key_C < self._largest_key_M[latent_C]
    latent_C, key_C, chosen_C = (
      a[is_in_C] for a in (latent_C, key_C, chosen_C)
    )
    is_in_C = _ranked(latent_C, key_C)[1] < self.key_MR.shape[1]
    latent_C, key_C, chosen_C = (
      a[is_in_C] for a in (latent_C, key_C, chosen_C)
    )
    self._wait(
      Entries(
        latent_C,
        key_C,
        firings.sequence_F[chosen_C].astype(np.int32),
        firings.position_F[chosen_C].astype(np.int32),
        firings_lib.windows(firings, chosen_C, self.window_MRW.shape[2]),
      )
    )

  def merge(self, other: Samples) -> None:
    """Adds what another part of the text has given."""
    other.settle()
    latent, slot = np.nonzero(other.key_MR != hashing.NOTHING)
    self._wait(
      Entries(
        latent,
        other.key_MR[latent, slot],
        other.sequence_MR[latent, slot],
        other.position_MR[latent, slot],
        other.window_MRW[latent, slot],
      )
    )

  def settle(self) -> None:
    """Merges in what waits."""
    if not self._num_waiting:
      return
    new = Entries(*map(np.concatenate, zip(*self._waiting, strict=True)))
    self._waiting, self._num_waiting = [], 0
    _, R = self.key_MR.shape
    touched_U = np.unique(new.latent_C)
    latent = np.concatenate([np.repeat(touched_U, R), new.latent_C])
    key = np.concatenate([self.key_MR[touched_U].ravel(), new.key_C])
    order, rank = _ranked(latent, key)
    is_kept = (rank < R)[order]
    # Of each latent as many come as go, and both lists are by latent.
    old, came, went = len(touched_U) * R, order[is_kept], order[~is_kept]
    came, went = came[came >= old] - old, went[went < old]
    slots = touched_U[went // R], went % R
    self.key_MR[slots] = new.key_C[came]
    self.sequence_MR[slots] = new.sequence_C[came]
    self.position_MR[slots] = new.position_C[came]
    self.window_MRW[slots] = new.window_CW[came]
    self._largest_key_M[touched_U] = self.key_MR[touched_U].max(axis=1)

  def arrays(self) -> dict[str, np.ndarray]:
    """Returns its arrays, settled, by name."""
    self.settle()
    names = ('key_MR', 'sequence_MR', 'position_MR', 'window_MRW')
    return {name: getattr(self, name) for name in names}

  def restore(self, arrays: dict[str, np.ndarray]) -> None:
    """Takes over what `arrays` gave."""
    vars(self).update(arrays)
    self._largest_key_M = self.key_MR.max(axis=1)

  def _wait(self, entries):
    self._waiting.append(entries)
    self._num_waiting += len(entries.key_C)
    if self._num_waiting >= self._most_waiting:
      self.settle()


def largest_first(firings: firings_lib.Firings) -> tuple[np.ndarray, ...]:
  """Returns the candidates for the largest activations, (chosen_C, key_C).

  Of a sequence only its largest: windows around neighbours would show the same
  text again. Equal activations are in the order of the text.
  """
  chosen_C = firings_lib.largest_of_sequences(firings)
  # Positive floats are ordered as their bits are.
  bits_C = firings.value_F[chosen_C].view(np.uint32).astype(np.uint64)
  place_C = (firings.place_F[chosen_C] + firings.origin).astype(np.uint64)
  low = np.uint64(2**32 - 1)
  return chosen_C, ((low - bits_C) << np.uint64(32)) | (place_C & low)


def uniformly(
  firings: firings_lib.Firings, seed: int
) -> tuple[np.ndarray, ...]:
  """Returns the candidates for a uniform sample: all, with hashes as keys."""
  place_F = firings.place_F + firings.origin
  key_F = hashing.of(seed, _UNIFORM, firings.latent_F, place_F)
  return np.arange(len(key_F)), key_F


def _ranked(latent, key):
  """Returns the order by latent and key, and each one's rank in its latent."""
  order = np.lexsort((key, latent))
  sorted_latent = latent[order]
  starts = np.flatnonzero(np.diff(sorted_latent, prepend=-1))
  sizes = np.diff(starts, append=len(order))
  rank = np.empty(len(order), np.int64)
  rank[order] = np.arange(len(order)) - np.repeat(starts, sizes)
  return order, rank
