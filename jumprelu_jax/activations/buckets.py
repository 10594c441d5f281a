"""One bucket of activations: sequences → rows of the model, shuffled.

A bucket is a pure function of the sequences, the model, the seed and its index;
stored shards and live training both are made of buckets, and so agree.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools

import jax
import ml_dtypes  # noqa: F401  (names bfloat16 for NumPy)
import numpy as np

from jumprelu_jax.text import packing

#: Maps token ids [B, L] to activations [B, L, D], one array for each site.
Tap = Callable[[np.ndarray], tuple[jax.Array, ...]]
# Sequences whose tokens are counted at a time.
_SEQUENCES_PER_COUNT = 1 << 16
# Rows whose norms are taken, or that are moved, at a time.
_ROWS_AT_A_TIME = 1 << 9


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """What decides the buckets, but for the model.

  Attributes:
    tokens_NL: sequences of token ids, int32; may be mapped from disk.
    special_ids: tokens whose positions are dropped.
    pad_id: fills a last batch up.
    sequences_per_bucket: of consecutive sequences in the random order.
    sequences_per_batch: in one forward pass.
    max_norm_multiple: drops a position whose norm, at any site, is more than
      this multiple of the bucket's median there; 0 drops none. Attention sinks
      have norms a hundred times the median and would decide the scale.
    seed: of the orders of sequences and of rows.
  """

  tokens_NL: np.ndarray
  special_ids: tuple[int, ...]
  pad_id: int
  sequences_per_bucket: int
  sequences_per_batch: int
  max_norm_multiple: float
  seed: int

  @property
  def num_buckets(self) -> int:
    """Buckets in all; the last may be smaller."""
    return -(-len(self.tokens_NL) // self.sequences_per_bucket)

  def tokens_of(self, index: int) -> int:
    """Returns the number of tokens that a bucket is made from."""
    return len(self.sequences_of(index)) * self.tokens_NL.shape[1]

  def sequences_of(self, index: int) -> np.ndarray:
    """Returns the indices of a bucket's sequences."""
    start = index * self.sequences_per_bucket
    return self._order_N[start : start + self.sequences_per_bucket]

  def rows_per_bucket(self) -> tuple[int, ...]:
    """Returns each bucket's rows as the text alone decides them."""
    counts = np.empty(len(self.tokens_NL), np.int64)
    for start in range(0, len(counts), _SEQUENCES_PER_COUNT):
      some = slice(start, start + _SEQUENCES_PER_COUNT)
      counts[some] = packing.is_text(
        self.tokens_NL[some], self.special_ids
      ).sum(1)
    return tuple(
      int(counts[self.sequences_of(i)].sum()) for i in range(self.num_buckets)
    )

  @functools.cached_property
  def _order_N(self):
    rng = np.random.default_rng([self.seed, 0])
    return rng.permutation(len(self.tokens_NL))


@dataclasses.dataclass(frozen=True, eq=False)
class Bucket:
  """Rows of some sequences.

  Attributes:
    rows: [N, D] for each site; row i is of the same position in all of them.
    origin_N3: token id, sequence and position of each row, int32.
    outliers: positions dropped for their norm.
  """

  rows: tuple[np.ndarray, ...]
  origin_N3: np.ndarray
  outliers: int


def make(
  plan: Plan,
  tap: Tap,
  index: int,
  on_batch: Callable[[int], None] = lambda tokens: None,
) -> Bucket:
  """Runs the model over a bucket's sequences.

  Memory is the bucket's rows, once, and two batches of activations.

  Args:
    plan: what decides the buckets.
    tap: the model, jitted; its results' dtype is the rows'.
    index: of the bucket.
    on_batch: called with the tokens of each batch that is done.
  """
  sequences = plan.sequences_of(index)
  tokens_NL = np.asarray(plan.tokens_NL[sequences])
  is_text_NL = packing.is_text(tokens_NL, plan.special_ids)
  places = np.random.default_rng([plan.seed, 1, index]).permutation(
    is_text_NL.sum()
  )
  rows, filled = None, 0
  for tokens_BL, is_text_BL, activations in _batches(
    plan, tap, tokens_NL, is_text_NL
  ):
    found = [np.asarray(x_BLD) for x_BLD in activations]
    if rows is None:
      rows = tuple(
        np.empty((len(places), x_BLD.shape[-1]), x_BLD.dtype) for x_BLD in found
      )
    where = places[filled : filled + is_text_BL.sum()]
    filled += len(where)
    for rows_ND, x_BLD in zip(rows, found, strict=True):
      rows_ND[where] = x_BLD[: len(tokens_BL)][is_text_BL]
    on_batch(tokens_BL.size)
  origin_N3 = np.empty((len(places), 3), np.int32)
  sequence, position = np.nonzero(is_text_NL)
  origin_N3[places] = np.stack(
    [tokens_NL[is_text_NL], sequences[sequence], position], axis=1
  )
  bucket = Bucket(rows, origin_N3, 0)
  if plan.max_norm_multiple:
    bucket = _without_outliers(bucket, plan.max_norm_multiple)
  return bucket


def _batches(plan, tap, tokens_NL, is_text_NL):
  """Yields (tokens, which are text, activations); runs one batch ahead."""
  ahead = None
  for start in range(0, len(tokens_NL), plan.sequences_per_batch):
    some = slice(start, start + plan.sequences_per_batch)
    # A short last batch is filled up, to compile only once.
    padded_BL = packing.pad_rows(
      tokens_NL[some], plan.sequences_per_batch, plan.pad_id
    )
    # The device works on this batch while rows of the last are stored.
    batch = tokens_NL[some], is_text_NL[some], tap(padded_BL)
    if ahead is not None:
      yield ahead
    ahead = batch
  yield ahead


def _without_outliers(bucket, multiple):
  """Drops the rows whose norm is too large at any site; reuses the arrays."""
  if not len(bucket.origin_N3):
    return bucket
  keep_N = np.ones(len(bucket.origin_N3), bool)
  for rows_ND in bucket.rows:
    norm_N = _norms(rows_ND)
    # NaN and infinity are no outliers but a failing model: the store says so.
    is_outlier_N = norm_N > multiple * np.median(norm_N)
    keep_N &= ~(is_outlier_N & np.isfinite(norm_N))
  return Bucket(
    tuple(_kept(rows_ND, keep_N) for rows_ND in bucket.rows),
    bucket.origin_N3[keep_N],
    int(np.sum(~keep_N)),
  )


def _norms(rows_ND):
  """Norms in float32, without a float32 copy of all rows."""
  return np.concatenate(
    [
      np.linalg.norm(rows_ND[some].astype(np.float32), axis=1)
      for some in _pieces(rows_ND)
    ]
  )


def _kept(rows_ND, keep_N):
  """Moves the rows that are kept to the front: no second copy of all."""
  filled = 0
  for some in _pieces(rows_ND):
    kept_ND = rows_ND[some][keep_N[some]]
    rows_ND[filled : filled + len(kept_ND)] = kept_ND
    filled += len(kept_ND)
  return rows_ND[:filled]


def _pieces(rows_ND):
  """Returns slices that cover the rows, small beside a bucket."""
  starts = range(0, len(rows_ND), _ROWS_AT_A_TIME)
  return [slice(start, start + _ROWS_AT_A_TIME) for start in starts]
