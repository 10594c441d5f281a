"""Shards → batches by step, and batches made ahead of their use.

Epoch e visits the shards in a permutation of (seed, e), and each shard's blocks
of 256 rows in a permutation of (seed, e, shard). Laid end to end, epochs are
one endless stream, and a batch is a piece of it: a function of (seed, step).
Rows come as they are stored; scaling and conversion are the device's.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from concurrent import futures
import threading
import time
from typing import Protocol
from typing import Self

import numpy as np

from jumprelu_jax import errors
from jumprelu_jax.activations import formats


class Shards(Protocol):
  """Rows in shards: a store, or a model that makes them when asked."""

  @property
  def rows_per_shard(self) -> tuple[int, ...]:
    """Rows of each shard; may be 0."""

  @property
  def widths(self) -> tuple[int, ...]:
    """Sizes of a row's parts: (D,), or (D, E) where a target E is beside it."""

  @property
  def scales(self) -> tuple[float, ...]:
    """What each part of a row is to be divided by."""

  def open(self, index: int) -> formats.Reader:
    """Returns the rows of a shard; may take long."""


class Batches:
  """Batches of shards, by step; every row once an epoch.

  While a shard is read, a thread opens the one that comes next in the stream,
  so two are open at a time. May be used from several threads, one at a time.
  """

  def __init__(
    self,
    shards: Shards,
    batch_size: int,
    seed: int,
    *,
    num_steps: int | None = None,
    share: tuple[int, int] | None = None,
  ):
    """Makes no batch yet.

    Args:
      shards: where rows are from.
      batch_size: B, rows of a batch.
      seed: decides the order of shards and blocks; not negative.
      num_steps: steps that will be asked for: a shard that only later ones
        need is not opened ahead. None for no end.
      share: (first, stop) of each batch's rows that are wanted, as one of
        several hosts wants them; no others are read. None for all.

    Raises:
      errors.InputError: there are no rows.
    """
    self._shards, self._batch_size, self._seed = shards, batch_size, seed
    self._rows = np.array(shards.rows_per_shard, np.int64)
    self._num_rows = int(self._rows.sum())
    self._end = None if num_steps is None else num_steps * batch_size
    self._share = share or (0, batch_size)
    self._epoch = self._blocks = (None, None)
    self._opening: dict[int, futures.Future] = {}
    self._thread = futures.ThreadPoolExecutor(1, 'open-shard')
    self._lock = threading.Lock()
    if not self._num_rows:
      raise errors.InputError(
        f'{len(self._rows)} shards of activations hold 0 rows, expected more; '
        'run experiments.harvest on more text.'
      )
    if batch_size < 1:
      raise errors.InputError(f'batch_size={batch_size}; use 1 or more.')

  def __getitem__(self, step: int) -> np.ndarray:
    """Returns the share of rows [step B, (step + 1) B) of the stream.

    As stored: [B, D], or as many of the B as the share has.

    Raises:
      IndexError: the step is negative.
      errors.InputError: a shard is damaged; also one opened in the background.
    """
    if step < 0:
      raise IndexError(f'step {step} is negative; the first step is 0.')
    first, stop = self._share
    wanted, out_BD, filled = stop - first, None, 0
    with self._lock:
      while filled < wanted:
        position = step * self._batch_size + first + filled
        for block_ND in self._read(position, wanted - filled):
          if out_BD is None:
            shape = (wanted, block_ND.shape[1])
            out_BD = np.empty(shape, block_ND.dtype)
            # As bytes: NumPy copies bfloat16 at half the speed.
            bytes_BK = out_BD.view(np.uint8)
          stop = filled + len(block_ND)
          bytes_BK[filled:stop] = block_ND.view(np.uint8)
          filled = stop
    return out_BD

  def where(self, step: int) -> str:
    """Says which rows a batch is made of: epoch, shards, and rows of each."""
    found, filled = {}, 0
    with self._lock:
      while filled < self._batch_size:
        position = step * self._batch_size + filled
        epoch, shard, offset = self._locate(position)
        rows = min(self._batch_size - filled, int(self._rows[shard]) - offset)
        slices = self._slices(epoch, shard, offset, rows)
        found.setdefault((epoch, shard), []).extend(slices)
        filled += rows
    return '; '.join(
      f'epoch {epoch}, shard {shard}, rows '
      + ', '.join(f'{s.start}-{s.stop - 1}' for s in slices)
      for (epoch, shard), slices in found.items()
    )

  def close(self) -> None:
    """Opens no more shards; does not wait for one that is being opened."""
    self._thread.shutdown(wait=False, cancel_futures=True)

  def _read(self, position, wanted):
    """Returns blocks from a position on: of one shard, at most so many rows."""
    epoch, shard, offset = self._locate(position)
    wanted = min(wanted, int(self._rows[shard]) - offset)
    reader = self._reader(shard, position - offset + int(self._rows[shard]))
    slices = self._slices(epoch, shard, offset, wanted)
    return formats.read_together(reader, list(slices))

  def _locate(self, position):
    """Returns (epoch, shard, offset in its blocks laid end to end)."""
    epoch, offset = divmod(position, self._num_rows)
    if self._epoch[0] != epoch:
      order = self._permutation(len(self._rows), epoch, 0)
      self._epoch = (epoch, (order, np.cumsum(self._rows[order])))
    order, ends = self._epoch[1]
    place = int(np.searchsorted(ends, offset, 'right'))  # passes empty shards
    shard = int(order[place])
    return epoch, shard, offset - int(ends[place] - self._rows[shard])

  def _slices(self, epoch, shard, offset, wanted) -> Iterator[slice]:
    """Yields slices of a shard: its blocks in an epoch's order, from offset."""
    if self._blocks[0] != (epoch, shard):
      starts = np.arange(0, self._rows[shard], formats.BLOCK_ROWS)
      starts = starts[self._permutation(len(starts), epoch, 1 + shard)]
      sizes = np.minimum(self._rows[shard] - starts, formats.BLOCK_ROWS)
      self._blocks = ((epoch, shard), (starts, sizes, np.cumsum(sizes)))
    starts, sizes, ends = self._blocks[1]
    block = int(np.searchsorted(ends, offset, 'right'))
    skipped = offset - int(ends[block] - sizes[block])
    while wanted:
      taken = min(int(sizes[block]) - skipped, wanted)
      first = int(starts[block]) + skipped
      yield slice(first, first + taken)
      block, skipped, wanted = block + 1, 0, wanted - taken

  def _permutation(self, size, *key):
    # Keys are of one length: SeedSequence takes [1] and [1, 0] for the same.
    return np.random.default_rng([self._seed, *key]).permutation(size)

  def _reader(self, shard, end):
    """Returns a shard's rows; starts to open the shard at position `end`."""
    needed = [shard]
    if self._end is None or end < self._end:
      needed.append(self._locate(end)[1])
    for other in self._opening.keys() - set(needed):
      self._opening.pop(other).cancel()
    for index in needed:
      if index not in self._opening:
        self._opening[index] = self._thread.submit(self._open, index)
    try:
      return self._opening[shard].result()
    except BaseException:
      self._opening.pop(shard)  # asked again, it is tried again
      raise

  def _open(self, shard):
    reader = self._shards.open(shard)
    assert len(reader) == self._rows[shard], (shard, len(reader))
    return reader


class Prefetched:
  """Iterates over (step, x_BD); made by `prefetched`.

  Attributes:
    wait_s: seconds that the consumer has waited for batches.
  """

  def __init__(self, batches: Batches, start: int, stop: int, depth: int):
    self.wait_s = 0.0
    self._batches, self._depth = batches, depth
    self._steps = iter(range(start, stop))
    self._ahead: collections.deque = collections.deque()
    # One thread, so batches are made in the order of steps.
    self._thread = futures.ThreadPoolExecutor(1, 'prefetch') if depth else None
    for _ in range(depth):
      self._submit()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *error) -> None:
    self.close()

  def __iter__(self) -> Self:
    return self

  def __next__(self) -> tuple[int, np.ndarray]:
    """Returns the next step and batch; an error of making it ends all."""
    began = time.perf_counter()
    try:
      return self._take()
    except BaseException:
      self.close()
      raise
    finally:
      self.wait_s += time.perf_counter() - began

  def close(self) -> None:
    """Ends the iteration; does not wait for a batch that is being made."""
    self._steps = iter(())
    self._ahead.clear()
    if self._thread is not None:
      self._thread.shutdown(wait=False, cancel_futures=True)

  def _take(self):
    if self._thread is None:
      step = next(self._steps)
      return step, self._batches[step]
    if not self._ahead:
      raise StopIteration
    step, future = self._ahead.popleft()
    x_BD = future.result()
    self._submit()
    return step, x_BD

  def _submit(self):
    for step in self._steps:
      future = self._thread.submit(self._batches.__getitem__, step)
      self._ahead.append((step, future))
      return


def prefetched(
  batches: Batches, start: int, stop: int, depth: int
) -> Prefetched:
  """Returns an iterator over (step, batch) of steps [start, stop).

  Args:
    batches: what to index by step.
    start: first step.
    stop: step after the last.
    depth: batches that a thread keeps ready; 0 makes each when it is asked for,
      without a thread.
  """
  return Prefetched(batches, start, stop, depth)
