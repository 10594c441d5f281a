"""What fires in a batch of text, sparse, on the host.

Letters beyond `shapes`: F firings of a batch, C those chosen from them, W the
width of a window.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from scipy import sparse


@dataclasses.dataclass(frozen=True)
class Firings:
  """All firings in some sequences, by latent and then by position.

  Attributes:
    first: index in the text of the first sequence.
    tokens_BL: the sequences, int32.
    is_text_BL: where they are text; nothing fires elsewhere.
    latent_F: int64, ascending.
    place_F: b * L + l, int64; ascending for each latent.
    value_F: activations > 0, float32.
  """

  first: int
  tokens_BL: np.ndarray
  is_text_BL: np.ndarray
  latent_F: np.ndarray
  place_F: np.ndarray
  value_F: np.ndarray

  @property
  def length(self) -> int:
    """L."""
    return self.tokens_BL.shape[1]

  @property
  def origin(self) -> int:
    """What makes of a place in the batch a place in the text: n * L + l."""
    return self.first * self.length

  @functools.cached_property
  def sequence_F(self) -> np.ndarray:
    """The sequence's index in the text."""
    return self.first + self.place_F // self.length

  @functools.cached_property
  def position_F(self) -> np.ndarray:
    """The position in that sequence."""
    return self.place_F % self.length

  @functools.cached_property
  def group_F(self) -> np.ndarray:
    """A number for each pair of latent and sequence, ascending."""
    B = len(self.tokens_BL)
    return self.latent_F * B + self.place_F // self.length


def by_latent(
  first: int,
  tokens_BL: np.ndarray,
  is_text_BL: np.ndarray,
  value_NK: np.ndarray,
  latent_NK: np.ndarray,
  num_latents: int,
) -> Firings:
  """Returns the firings of a batch.

  Args:
    first: index of its first sequence.
    tokens_BL: its sequences.
    is_text_BL: where they are text.
    value_NK: activations at its N = B * L places, 0 where a slot is empty.
    latent_NK: whose they are; a latent is in one slot of a row at most.
    num_latents: M.
  """
  is_in_NK = (value_NK > 0) & is_text_BL.reshape(-1, 1)
  bounds = np.concatenate([[0], np.cumsum(is_in_NK.sum(axis=1))])
  rows = sparse.csr_array(
    (value_NK[is_in_NK], latent_NK[is_in_NK], bounds),
    shape=(len(value_NK), num_latents),
  )
  columns = rows.tocsc()  # a transposition: linear, where sorting is not
  latent_F = np.repeat(np.arange(num_latents), np.diff(columns.indptr))
  return Firings(
    first,
    tokens_BL,
    is_text_BL,
    latent_F,
    columns.indices.astype(np.int64),
    columns.data,
  )


def largest_of_sequences(firings: Firings) -> np.ndarray:
  """Returns, for each latent and sequence, its largest firing [C].

  Indices of firings, ascending; of equals the first.
  """
  group_F = firings.group_F
  if not len(group_F):
    return np.empty(0, np.int64)
  starts = np.flatnonzero(np.diff(group_F, prepend=-1))
  sizes = np.diff(starts, append=len(group_F))
  largest_F = np.repeat(np.maximum.reduceat(firings.value_F, starts), sizes)
  place = np.flatnonzero(firings.value_F == largest_F)
  return place[np.diff(group_F[place], prepend=-1) != 0]


def window_start(position_C: np.ndarray, width: int, length: int) -> np.ndarray:
  """Returns where windows begin: centred, as far as the sequence allows."""
  return np.clip(position_C - width // 2, 0, length - width)


def windows(firings: Firings, chosen_C: np.ndarray, width: int) -> np.ndarray:
  """Returns what the latents of some firings do around them, [C, W] float32.

  Args:
    firings: of the batch.
    chosen_C: indices of firings.
    width: positions in a window, L at most.
  """
  start_C = window_start(firings.position_F[chosen_C], width, firings.length)
  found_CW = np.zeros((len(chosen_C), width), np.float32)
  group_F, position_F = firings.group_F, firings.position_F
  for step in (-1, 1):
    # A latent's firings in a sequence lie side by side, so walk along them, all
    # windows at once, until each has come to its end.
    row, at = np.arange(len(chosen_C)), chosen_C
    while len(row):
      offset = position_F[at] - start_C[row]
      is_in = (group_F[at] == group_F[chosen_C[row]]) & (offset >= 0)
      is_in &= offset < width
      row, at, offset = row[is_in], at[is_in], offset[is_in]
      found_CW[row, offset] = firings.value_F[at]
      at = at + step
      is_there = (at >= 0) & (at < len(group_F))
      row, at = row[is_there], at[is_there]
  return found_CW
