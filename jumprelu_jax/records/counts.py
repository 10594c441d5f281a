"""How often each latent fires, how strongly, and on which tokens.

Letters beyond `firings`: H bins of a histogram, S tokens kept of a latent.
"""

from __future__ import annotations

import numpy as np

from jumprelu_jax.records import firings as firings_lib

#: Of the histograms: quarters of an octave, from a thousandth to ten thousand,
#: since activations of one model may be ten thousand times another's.
EDGES = np.exp2(np.arange(-40, 57) / 4).astype(np.float32)

# Firings that wait until they are counted, for each slot of the table.
_WAITING_PER_SLOT = 0.5
_FEWEST_WAITING = 2**20


class Totals:
  """Counts, sums, maxima and histograms: 20 + 8 H bytes a latent.

  Attributes:
    positions: [1], int64: of text.
    count_M: int64.
    sum_M: of activations, float64.
    max_M: float32.
    histogram_MH: int64.
  """

  def __init__(self, num_latents: int):
    self.positions = np.zeros(1, np.int64)
    self.count_M = np.zeros(num_latents, np.int64)
    self.sum_M = np.zeros(num_latents, np.float64)
    self.max_M = np.zeros(num_latents, np.float32)
    self.histogram_MH = np.zeros((num_latents, len(EDGES) - 1), np.int64)

  def add(self, firings: firings_lib.Firings) -> None:
    """Adds a batch."""
    M, H = self.histogram_MH.shape
    latent_F, value_F = firings.latent_F, firings.value_F
    self.positions += firings.is_text_BL.sum()
    self.count_M += np.bincount(latent_F, minlength=M)
    self.sum_M += np.bincount(latent_F, weights=value_F, minlength=M)
    np.maximum.at(self.max_M, latent_F, value_F)
    bin_F = np.searchsorted(EDGES, value_F, side='right') - 1
    bin_F = latent_F * H + np.clip(bin_F, 0, H - 1)
    np.add.at(self.histogram_MH.reshape(-1), bin_F, 1)

  def merge(self, other: Totals) -> None:
    """Adds what another part of the text has given."""
    for name in ('positions', 'count_M', 'sum_M', 'histogram_MH'):
      getattr(self, name)[...] += getattr(other, name)
    np.maximum(self.max_M, other.max_M, out=self.max_M)

  def arrays(self) -> dict[str, np.ndarray]:
    """Returns its arrays by name."""
    return dict(vars(self))

  def restore(self, arrays: dict[str, np.ndarray]) -> None:
    """Takes over what `arrays` gave."""
    vars(self).update(arrays)


class TokenCounts:
  """The tokens at which each latent fires most often, in S slots a latent.

  Misra and Gries's summary in the form that merges (Agarwal et al. 2012,
  "Mergeable summaries"): exact as long as a latent has fired on S tokens at
  most; beyond, counts are too small by at most 1 / (S + 1) of all its firings.
  12 S bytes a latent, and six times as much while it settles.

  Attributes:
    token_MS: int32, most frequent first.
    count_MS: int64; 0 where a slot is empty.
  """

  def __init__(self, num_latents: int, slots: int, vocab_size: int):
    self.token_MS = np.zeros((num_latents, slots), np.int32)
    self.count_MS = np.zeros((num_latents, slots), np.int64)
    self._vocab_size = vocab_size
    self._waiting, self._num_waiting = [], 0
    wanted = int(num_latents * slots * _WAITING_PER_SLOT)
    self._most_waiting = max(_FEWEST_WAITING, wanted)

  @property
  def error(self) -> float:
    """By how much a count may be too small, as a share of all firings."""
    return 1 / (self.count_MS.shape[1] + 1)

  def add(self, firings: firings_lib.Firings) -> None:
    """Adds a batch."""
    token_F = firings.tokens_BL.reshape(-1)[firings.place_F]
    self._waiting.append(firings.latent_F * self._vocab_size + token_F)
    self._num_waiting += len(token_F)
    if self._num_waiting >= self._most_waiting:
      self.settle()

  def merge(self, other: TokenCounts) -> None:
    """Adds what another part of the text has given."""
    self.settle()
    other.settle()
    self._combine(*other._entries())

  def settle(self) -> None:
    """Counts what waits."""
    if self._num_waiting:
      keys = np.concatenate(self._waiting)
      self._waiting, self._num_waiting = [], 0
      self._combine(*np.unique(keys, return_counts=True))

  def arrays(self) -> dict[str, np.ndarray]:
    """Returns its arrays, settled, by name."""
    self.settle()
    return {'token_MS': self.token_MS, 'count_MS': self.count_MS}

  def restore(self, arrays: dict[str, np.ndarray]) -> None:
    """Takes over what `arrays` gave."""
    self.token_MS, self.count_MS = arrays['token_MS'], arrays['count_MS']

  def _entries(self):
    """Returns latent * V + token, and the count, of every slot in use."""
    latent, slot = np.nonzero(self.count_MS)
    token = self.token_MS[latent, slot].astype(np.int64)
    return latent * self._vocab_size + token, self.count_MS[latent, slot]

  def _combine(self, keys, counts):
    """Adds counts by key, and keeps what fits the slots."""
    M, S = self.count_MS.shape
    ours, our_counts = self._entries()
    keys, counts = _add_up(
      np.concatenate([ours, keys]), np.concatenate([our_counts, counts])
    )
    latent = keys // self._vocab_size
    order = np.lexsort((-counts, latent))  # stable: equals by token
    keys, counts, latent = keys[order], counts[order], latent[order]
    rank = np.arange(len(keys)) - np.searchsorted(latent, latent)
    # What does not fit takes its largest count from all that does, so that each
    # count taken from one token is taken from S others too.
    excess_M = np.zeros(M, np.int64)
    excess_M[latent[rank == S]] = counts[rank == S]
    counts = counts - excess_M[latent]
    is_kept = (rank < S) & (counts > 0)
    slots = latent[is_kept], rank[is_kept]
    self.count_MS[...] = 0
    self.token_MS[...] = 0
    self.count_MS[slots] = counts[is_kept]
    self.token_MS[slots] = keys[is_kept] % self._vocab_size


def _add_up(keys, counts):
  """Returns the keys, ascending and each once, and the sums of their counts."""
  if not len(keys):
    return keys, counts
  order = np.argsort(keys, kind='stable')
  keys, counts = keys[order], counts[order]
  starts = np.flatnonzero(np.diff(keys, prepend=-1))
  return keys[starts], np.add.reduceat(counts, starts)
