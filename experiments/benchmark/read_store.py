"""Measures how fast batches are read from a store of random rows.

taskset -c 0 python -m experiments.benchmark.read_store --format=npy,zarr3
"""

from collections.abc import Callable
from collections.abc import Iterator
import os
import statistics
import tempfile
import time

from absl import app
from absl import flags
import numpy as np

from jumprelu_jax.activations import batches as batches_lib
from jumprelu_jax.activations import formats
from jumprelu_jax.activations import store as store_lib

_ROWS = flags.DEFINE_integer('rows', 400_000, 'Rows of the store.')
_SHARDS = flags.DEFINE_integer('shards', 4, 'Shards that they are in.')
_D_MODEL = flags.DEFINE_integer('d_model', 768, 'Size of a row.')
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 4096, 'Rows of a batch.')
_DTYPE = flags.DEFINE_enum(
  'dtype', 'bfloat16', list(formats.DTYPES), 'Of rows.'
)
_FORMAT = flags.DEFINE_list('format', ['npy', 'zarr3'], 'Formats to measure.')
_SECONDS = flags.DEFINE_float('seconds', 5.0, 'Time for each format.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where the store is put.')

_WINDOWS = 10


def _random_rows(index: int, rows: int) -> np.ndarray:
  """Returns rows [N, D] of cheap random numbers."""
  rng = np.random.default_rng(index)
  some_KD = rng.standard_normal((1024, _D_MODEL.value), np.float32)
  rows_ND = np.tile(some_KD, (-(-rows // 1024), 1))[:rows]
  return rows_ND.astype(formats.DTYPES[_DTYPE.value])


def _make_store(folder: str, format_name: str) -> store_lib.Store:
  description = store_lib.Description(
    model='random',
    revision='',
    model_dtype='none',
    tokenizer='',
    site='none',
    layer=0,
    d_model=_D_MODEL.value,
    dtype=_DTYPE.value,
    format=format_name,
    text='',
    packing='none',
    context_length=1,
    num_sequences=_ROWS.value,
    bos_id=0,
    special_ids=(),
    seed=0,
    sequences_per_bucket=_ROWS.value // _SHARDS.value,
    max_norm_multiple=0.0,
    num_shards=_SHARDS.value,
  )
  for index in range(_SHARDS.value):
    rows_ND = _random_rows(index, _ROWS.value // _SHARDS.value)
    origin_N3 = np.zeros((len(rows_ND), 3), np.int32)
    store_lib.write_shard(folder, description, index, rows_ND, origin_N3, 0)
  store_lib.write_manifest(folder, description)
  store = store_lib.Store(folder)
  assert not store.verify()  # and so all is in the page cache
  return store


def _copies() -> Callable[[], np.ndarray]:
  """Returns a function that copies a batch's bytes from a large array."""
  rows_ND = _random_rows(0, _ROWS.value)
  batch_size = _BATCH_SIZE.value
  starts: Iterator[int] = iter(())

  def copy():
    nonlocal starts
    start = next(starts, None)
    if start is None:
      starts = iter(range(0, len(rows_ND) - batch_size, batch_size))
      start = next(starts)
    copy_BD = np.empty((batch_size, _D_MODEL.value), rows_ND.dtype)
    bytes_BK = rows_ND[start : start + batch_size].view(np.uint8)
    np.copyto(copy_BD.view(np.uint8), bytes_BK)
    return copy_BD

  return copy


def _report(name: str, make_batch: Callable[[], np.ndarray]) -> None:
  """Prints the median and least GB/s over windows of time."""
  make_batch()
  rates = []
  for _ in range(_WINDOWS):
    began, num_bytes = time.perf_counter(), 0
    while time.perf_counter() - began < _SECONDS.value / _WINDOWS:
      num_bytes += make_batch().nbytes
    rates.append(num_bytes / (time.perf_counter() - began) / 1e9)
  median = statistics.median(rates)
  print(f'{name:8} median {median:6.2f} GB/s   min {min(rates):6.2f} GB/s')


def main(argv):
  del argv
  print(
    f'{_BATCH_SIZE.value} x {_D_MODEL.value} {_DTYPE.value}, '
    f'{_ROWS.value:,} rows in {_SHARDS.value} shards, '
    f'cores {sorted(os.sched_getaffinity(0))}'
  )
  _report('memcpy', _copies())
  for name in _FORMAT.value:
    with tempfile.TemporaryDirectory(dir=_WORKDIR.value) as folder:
      batches = batches_lib.Batches(
        _make_store(folder, name), _BATCH_SIZE.value, 0
      )
      steps = iter(range(10**9))
      _report(name, lambda b=batches, s=steps: b[next(s)])
      batches.close()


if __name__ == '__main__':
  app.run(main)
