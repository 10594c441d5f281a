"""A small store of activations for tests, and what it must hold."""

import ml_dtypes
import numpy as np

from jumprelu_jax.activations import store as store_lib

SIZES = (257, 0, 1, 600)
ALL = range(len(SIZES))
D = 6
DTYPES = {'float32': np.float32, 'bfloat16': ml_dtypes.bfloat16}


def describe(**values):
  fields = {
    'model': 'tiny',
    'revision': 'main',
    'model_dtype': 'float32',
    'tokenizer': 'abc',
    'site': 'residual',
    'layer': 1,
    'd_model': D,
    'dtype': 'bfloat16',
    'format': 'npy',
    'text': 'a.jsonl',
    'packing': 'split',
    'context_length': 8,
    'num_sequences': 100,
    'bos_id': 0,
    'special_ids': (0, 1),
    'seed': 0,
    'sequences_per_bucket': 25,
    'max_norm_multiple': 10.0,
    'num_shards': len(SIZES),
  }
  return store_lib.Description(**{**fields, **values})


def some_rows(index, description, size=None):
  """Rows and origins of a shard."""
  rng = np.random.default_rng([7, index])
  size = SIZES[index] if size is None else size
  rows_ND = 3 + rng.standard_normal((size, description.d_model))
  origin_N3 = rng.integers(0, 1000, (size, 3)).astype(np.int32)
  return rows_ND.astype(DTYPES[description.dtype]), origin_N3


def write(folder, description, indices=ALL):
  for index in indices:
    rows_ND, origin_N3 = some_rows(index, description)
    store_lib.write_shard(
      folder, description, index, rows_ND, origin_N3, outliers=index
    )
    store_lib.write_manifest(folder, description)


def assert_holds(store, indices):
  """Rows and origins of these shards are, bit for bit, those written."""
  for index in indices:
    rows_ND, origin_N3 = some_rows(index, store.description)
    got_ND = store.open(index)[0 : len(rows_ND)]
    assert got_ND.dtype == rows_ND.dtype
    assert got_ND.tobytes() == rows_ND.tobytes()
    np.testing.assert_array_equal(store.origin(index), origin_N3)
    assert store.origin(index).dtype == np.int32


def rows_file(folder, index):
  """The local file that holds the rows of a shard."""
  npy = folder / f'shard_{index:05d}.npy'
  return npy if npy.is_file() else npy.with_suffix('.zarr') / 'c' / '0' / '0'
