"""The store of activations: nothing lost, nothing special, nothing random."""

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from jumprelu_jax import activations
from jumprelu_jax import errors

BOS, EOS, PAD = 2, 1, 0
SPECIAL = (BOS, EOS, PAD)


def tap(tokens_BL):
  """Activations that tell which token they are from: (token, token^2, 1)."""
  x_BL = tokens_BL.astype('float32')
  return jnp.stack([x_BL, x_BL**2, jnp.ones_like(x_BL)], axis=-1)


def some_tokens(sequences=30, length=9, seed=0):
  """Packed tokens with special ones among them; every other token once."""
  rng = np.random.default_rng(seed)
  tokens_NL = 3 + np.arange(sequences * length).reshape(sequences, length)
  is_special = rng.random(tokens_NL.shape) < 0.3
  special = rng.choice(SPECIAL, tokens_NL.shape)
  return np.where(is_special, special, tokens_NL).astype(np.int32)


@pytest.fixture
def make_store(tmp_path):
  def make(bucket_rows=50, seed=0, name='store', sequences_per_batch=4):
    activations.harvest(
      jax.jit(tap),
      some_tokens(),
      tmp_path / name,
      special_ids=SPECIAL,
      sequences_per_batch=sequences_per_batch,
      bucket_rows=bucket_rows,
      seed=seed,
      source={'model': 'test'},
    )
    return activations.Store(tmp_path / name)

  return make


def all_rows(store):
  shards = range(len(store.manifest.rows_per_shard))
  return np.concatenate([store.shard(i) for i in shards])


@pytest.mark.parametrize('bucket_rows', [7, 50, 10_000])
def test_store_holds_every_text_position_once(make_store, bucket_rows):
  store = make_store(bucket_rows)
  tokens_NL = some_tokens()
  expected = np.sort(tokens_NL[tokens_NL > 2])
  got = all_rows(store)
  np.testing.assert_array_equal(np.sort(got[:, 0]), expected)
  np.testing.assert_array_equal(got[:, 1], got[:, 0] ** 2)
  assert max(store.manifest.rows_per_shard) <= bucket_rows
  assert store.num_rows == len(expected)


def test_scale_gives_unit_mean_squared_norm(make_store):
  store = make_store()
  rows = all_rows(store).astype(np.float64)
  np.testing.assert_allclose(
    store.scale, np.sqrt((rows**2).sum(-1).mean()), rtol=1e-9
  )
  x_BD = activations.Batches(store, 4, 0)[0]
  assert x_BD.dtype == np.float32
  raw_BD = x_BD * store.scale
  np.testing.assert_allclose(raw_BD[:, 1], raw_BD[:, 0] ** 2, rtol=1e-5)


def test_rows_are_shuffled_across_sequences(make_store):
  order = all_rows(make_store(bucket_rows=10_000))[:, 0]
  # In text order neighbours differ by little; shuffled, by a third of it all.
  assert np.abs(np.diff(order)).mean() > 0.25 * (order.max() - order.min())


def test_an_epoch_reads_no_row_twice(make_store):
  store = make_store(bucket_rows=50)
  batches = activations.Batches(store, 8, seed=3)
  per_epoch = sum(n // 8 for n in store.manifest.rows_per_shard)
  epochs = [
    np.concatenate(
      [batches[epoch * per_epoch + i][:, 0] for i in range(per_epoch)]
    )
    for epoch in range(2)
  ]
  for rows in epochs:
    assert len(np.unique(rows)) == len(rows) == 8 * per_epoch
  assert not np.array_equal(*epochs)


def test_a_batch_is_a_function_of_seed_and_step(make_store):
  store = make_store()
  one, two = (activations.Batches(store, 8, seed=3) for _ in range(2))
  forward = [one[step] for step in range(40)]
  backward = [two[step] for step in reversed(range(40))][::-1]
  np.testing.assert_array_equal(forward, backward)
  assert not np.array_equal(activations.Batches(store, 8, seed=4)[0], one[0])


def test_harvest_is_a_function_of_its_seed(make_store):
  same = [all_rows(make_store(seed=1, name=name)) for name in 'ab']
  np.testing.assert_array_equal(*same)
  assert not np.array_equal(all_rows(make_store(seed=2, name='c')), same[0])


def test_forward_batch_size_changes_nothing(make_store):
  stores = [make_store(name=f's{n}', sequences_per_batch=n) for n in (1, 4, 7)]
  for store in stores[1:]:
    np.testing.assert_array_equal(all_rows(store), all_rows(stores[0]))


def test_unfinished_harvest_is_no_store(make_store, tmp_path):
  make_store()
  (tmp_path / 'store' / 'manifest.json').unlink()
  assert not activations.is_complete(tmp_path / 'store')
  with pytest.raises(errors.InputError, match='harvest first'):
    activations.Store(tmp_path / 'store')


def test_batch_larger_than_every_shard_is_refused(make_store):
  with pytest.raises(errors.InputError, match='use a smaller batch'):
    activations.Batches(make_store(bucket_rows=50), 51, 0)
