"""Buckets → stores, one for each site; and buckets without a store.

A harvest makes the shards that are not there, so one that was killed, or whose
shard was deleted, is finished by the same command.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent import futures
import contextlib
import os

import numpy as np

from jumprelu_jax import errors
from jumprelu_jax import preemption
from jumprelu_jax import progress
from jumprelu_jax.activations import buckets
from jumprelu_jax.activations import formats
from jumprelu_jax.activations import places
from jumprelu_jax.activations import sidecars
from jumprelu_jax.activations import store as store_lib

Folder = str | os.PathLike


def harvest(
  plan: buckets.Plan,
  tap: buckets.Tap,
  stores: Mapping[Folder, store_lib.Description],
  *,
  host: int = 0,
  hosts: int = 1,
) -> int:
  """Fills stores with the buckets that they lack.

  One bucket is written by a thread while the next is made, so memory is two
  buckets and the model.

  Args:
    plan: what decides the buckets.
    tap: the model; gives one array for each store, in their order.
    stores: folder or URL → description, for each site.
    host: this host makes the buckets with index % hosts == host.
    hosts: hosts that share the work.

  Returns:
    The number of buckets made.

  Raises:
    errors.InputError: a folder holds a store of something else; nothing is
      changed.
    errors.DiskFullError: no space is left; shards written before are usable.
    preemption.PreemptedError: the process was asked to end; likewise.
  """
  for folder, description in stores.items():
    if store_lib.exists(folder):
      store_lib.Store(folder).check_is_of(description)
  _write_manifests(stores)
  lacking = {folder: store_lib.Store(folder).missing for folder in stores}
  mine = [
    i for i in sorted(set().union(*lacking.values())) if i % hosts == host
  ]

  def write(index, bucket):
    for (folder, description), rows_ND in zip(
      stores.items(), bucket.rows, strict=True
    ):
      if index in lacking[folder]:
        store_lib.write_shard(
          folder, description, index, rows_ND, bucket.origin_N3, bucket.outliers
        )

  try:
    _make_and_write(plan, tap, mine, write)
  except BaseException:
    # The error to tell of is the first, also where a disk is full for both.
    with contextlib.suppress(errors.InputError):
      _write_manifests(stores)
    raise
  _write_manifests(stores)
  return len(mine)


class Live:
  """Shards that are made when they are opened (see `batches.Shards`).

  Rows of several sites lie side by side. Holds what `buckets.make` needs and no
  rows; whoever reads does.
  """

  def __init__(self, plan: buckets.Plan, tap: buckets.Tap):
    """Makes the first bucket, whose norms are the scales.

    Args:
      plan: what decides the buckets; without a norm filter, whose rows are not
        known before the model has run.
      tap: the model, at one site, or at a transcoder's two.
    """
    assert not plan.max_norm_multiple
    self._plan, self._tap = plan, tap
    self.rows_per_shard = plan.rows_per_bucket()
    first = buckets.make(plan, tap, 0)
    if not len(first.origin_N3):
      raise errors.InputError(
        'The first bucket holds no text, whose norm would be the scale; take '
        'more of it, or larger buckets.'
      )
    self.widths = tuple(rows_ND.shape[1] for rows_ND in first.rows)
    self.scales = tuple(
      sidecars.scale(sidecars.describe(rows_ND, first.origin_N3, 0))
      for rows_ND in first.rows
    )

  def open(self, index: int) -> formats.Reader:
    """Returns the rows of a bucket, run through the model now."""
    rows = buckets.make(self._plan, self._tap, index, _check_preemption).rows
    return rows[0] if len(rows) == 1 else np.concatenate(rows, axis=1)


_KEPT = (
  'the harvest was stopped on request; shards that are written are kept, and '
  'the same command goes on from there.'
)


def _check_preemption(tokens):
  """Between two batches of a bucket, the largest of which takes minutes."""
  del tokens
  preemption.check(_KEPT)


def _make_and_write(plan, tap, indices, write):
  """Makes buckets; a thread writes one while the next is made."""

  def on_batch(count):
    _check_preemption(count)
    bar.advance(count)

  tokens = sum(map(plan.tokens_of, indices))
  with (
    progress.track('harvest', tokens, 'tokens') as bar,
    futures.ThreadPoolExecutor(1, 'write') as writer,
  ):
    writing = None
    for index in indices:
      bucket = buckets.make(plan, tap, index, on_batch)
      if writing is not None:
        writing.result()
      writing = writer.submit(write, index, bucket)
      del bucket  # freed once it is written, while the next is made
    if writing is not None:
      writing.result()


def _write_manifests(stores):
  """Writes manifests until they list every shard that is there.

  Of several hosts each writes them when it is done; one that was overtaken
  while it wrote sees the other's shards when it looks again.
  """
  for folder, description in stores.items():
    seen = None
    while seen != (there := _there(folder, description)):
      store_lib.write_manifest(folder, description)
      seen = there


def _there(folder, description):
  count, d_model = description.num_shards, description.d_model
  return tuple(sorted(sidecars.read(places.at(folder), count, d_model)))
