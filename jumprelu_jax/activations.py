"""Activations: harvested once, stored in shuffled shards, read as batches.

Rows of special positions (BOS, EOS, PAD) are dropped. Sequences are read in a
random order and rows shuffled in large buckets; a bucket is a shard on disk.
The batch of a step is a function of (seed, step), so a position in the data is
nothing but the step.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import json
import os
import pathlib

import jax
from jax import numpy as jnp
import numpy as np

from jumprelu_jax import errors
from jumprelu_jax import progress
from jumprelu_jax import text

_MANIFEST = 'manifest.json'


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What a store holds.

  Attributes:
    d_model: D, size of a row.
    rows_per_shard: rows of each shard.
    mean_squared_norm: mean of ||x||^2 over all rows.
    source: what the activations are of, for the record.
  """

  d_model: int
  rows_per_shard: tuple[int, ...]
  mean_squared_norm: float
  source: dict[str, str | int]


class Store:
  """Reads a folder of shards; raises InputError where there is no manifest."""

  def __init__(self, folder: str | os.PathLike):
    self._folder = pathlib.Path(folder)
    if not is_complete(folder):
      raise errors.InputError(
        f'{folder} holds no complete store of activations; harvest first.'
      )
    raw = json.loads((self._folder / _MANIFEST).read_text())
    raw['rows_per_shard'] = tuple(raw['rows_per_shard'])
    self.manifest = Manifest(**raw)

  @property
  def num_rows(self) -> int:
    """Rows in all shards."""
    return sum(self.manifest.rows_per_shard)

  @property
  def scale(self) -> float:
    """Dividing by this gives rows of unit mean squared norm."""
    return self.manifest.mean_squared_norm**0.5

  def shard(self, index: int) -> np.ndarray:
    """Returns one shard [N, D], float32, mapped from disk."""
    return np.load(_shard_path(self._folder, index), mmap_mode='r')


class Batches:
  """Batches of a store, by step; every row of a shard at most once an epoch.

  An epoch visits the shards in a random order and each shard's rows in another;
  the rows that do not fill a batch are left out of that epoch.
  """

  def __init__(self, store: Store, batch_size: int, seed: int):
    """Raises errors.InputError if no shard fills a batch."""
    self._store, self._batch_size, self._seed = store, batch_size, seed
    self._batches_per_shard = [
      rows // batch_size for rows in store.manifest.rows_per_shard
    ]
    self._per_epoch = sum(self._batches_per_shard)
    self._open = (None, None, None)
    if not self._per_epoch:
      raise errors.InputError(
        f'config.train.batch_size={batch_size} is more than the '
        f'{max(store.manifest.rows_per_shard)} rows of a shard; harvest more '
        'activations or use a smaller batch.'
      )

  def __getitem__(self, step: int) -> np.ndarray:
    """Returns x_BD of a step, float32, scaled to unit mean squared norm."""
    epoch, index = divmod(step, self._per_epoch)
    shards = np.random.default_rng([self._seed, epoch]).permutation(
      len(self._batches_per_shard)
    )
    for shard in shards:
      if index < self._batches_per_shard[shard]:
        break
      index -= self._batches_per_shard[shard]
    rows, order = self._shard_and_order(epoch, int(shard))
    chosen = order[index * self._batch_size : (index + 1) * self._batch_size]
    return rows[chosen] / np.float32(self._store.scale)

  def _shard_and_order(self, epoch, shard):
    """Returns a shard and its rows' order in an epoch; remembers the last."""
    key = (epoch, shard)
    if self._open[0] != key:
      rows = self._store.shard(shard)
      rng = np.random.default_rng([self._seed, epoch, shard])
      self._open = (key, rows, rng.permutation(len(rows)))
    return self._open[1:]


def is_complete(folder: str | os.PathLike) -> bool:
  """True where a harvest has ended: its manifest is written last."""
  return (pathlib.Path(folder) / _MANIFEST).is_file()


def harvest(
  tap: Callable[[jax.Array], jax.Array],
  tokens_NL: np.ndarray,
  folder: str | os.PathLike,
  *,
  special_ids: tuple[int, ...],
  sequences_per_batch: int,
  bucket_rows: int,
  seed: int,
  source: dict[str, str | int],
) -> None:
  """Writes the activations of a text to a folder of shuffled shards.

  Args:
    tap: maps token ids [B, L] to activations [B, L, D].
    tokens_NL: packed token ids, int32.
    folder: where the store is written; what is there is overwritten.
    special_ids: tokens whose positions are dropped.
    sequences_per_batch: sequences in a call of `tap`.
    bucket_rows: rows shuffled together and stored as a shard.
    seed: decides the order of sequences and rows.
    source: recorded in the manifest.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  bucket = _Bucket(folder, bucket_rows, seed)
  order = np.random.default_rng([seed, 0]).permutation(len(tokens_NL))
  with progress.track('harvest', tokens_NL.size, 'tokens') as bar:
    for start in range(0, len(order), sequences_per_batch):
      tokens_BL = tokens_NL[order[start : start + sequences_per_batch]]
      # A short last batch is filled up with padding, to compile only once.
      padded_BL = text.pad_rows(tokens_BL, sequences_per_batch, special_ids[-1])
      x_BLD = np.asarray(tap(jnp.asarray(padded_BL)), np.float32)
      bucket.add(x_BLD[text.is_text(padded_BL, special_ids)])
      bar.advance(tokens_BL.size)
  manifest = bucket.finish(source)
  _write_aside(
    folder / _MANIFEST,
    lambda path: path.write_text(
      json.dumps(dataclasses.asdict(manifest), indent=2) + '\n'
    ),
  )


class _Bucket:
  """Collects rows; shuffles and writes them whenever it is full."""

  def __init__(self, folder, capacity, seed):
    self._folder, self._capacity, self._seed = folder, capacity, seed
    self._rows_ND, self._filled = None, 0
    self._rows_per_shard = []
    self._sum_squared_norm = 0.0

  def add(self, x_ND):
    if self._rows_ND is None:
      self._rows_ND = np.empty((self._capacity, x_ND.shape[1]), np.float32)
    self._sum_squared_norm += float(np.sum(x_ND.astype(np.float64) ** 2))
    while len(x_ND):
      taken = min(len(x_ND), self._capacity - self._filled)
      self._rows_ND[self._filled : self._filled + taken] = x_ND[:taken]
      self._filled += taken
      x_ND = x_ND[taken:]
      if self._filled == self._capacity:
        self._write_shard()

  def finish(self, source):
    if self._filled:
      self._write_shard()
    return Manifest(
      d_model=self._rows_ND.shape[1],
      rows_per_shard=tuple(self._rows_per_shard),
      mean_squared_norm=self._sum_squared_norm / sum(self._rows_per_shard),
      source=source,
    )

  def _write_shard(self):
    index = len(self._rows_per_shard)
    rng = np.random.default_rng([self._seed, 1, index])
    shuffled_ND = self._rows_ND[rng.permutation(self._filled)]

    def write(path):
      with path.open('wb') as file:  # np.save would add a suffix to the path
        np.save(file, shuffled_ND)

    _write_aside(_shard_path(self._folder, index), write)
    self._rows_per_shard.append(self._filled)
    self._filled = 0


def _shard_path(folder, index):
  return folder / f'shard_{index:05d}.npy'


def _write_aside(path, write):
  """Writes a file beside its place and renames it: whole or not at all."""
  aside = path.with_suffix('.partial')
  write(aside)
  os.replace(aside, path)
