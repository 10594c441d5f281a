"""The largest pre-activations, against NumPy's sort."""

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from experiments.plan import programs
from jumprelu_jax import selection
from jumprelu_jax import sharding


def random_pre(shape=(32, 64), seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype('float32')


def sorted_top_k(pre, k):
  """ReLU of the k largest of each row, by a sort."""
  kth = np.sort(pre, axis=1)[:, -k][:, None]
  return np.where(pre >= kth, np.maximum(pre, 0), 0)


@pytest.mark.parametrize('k', [1, 5, 40, 64])
@pytest.mark.parametrize('is_approximate', [False, True])
def test_top_k_equals_a_sort(is_approximate, k):
  # `approx_max_k` is exact on a CPU. Of 64, some 32 are positive.
  pre = random_pre()
  got = selection.top_k(jnp.asarray(pre), k, is_approximate=is_approximate)
  np.testing.assert_array_equal(got, sorted_top_k(pre, k))


@pytest.mark.parametrize('is_approximate', [False, True])
def test_gradient_of_top_k_reaches_the_selected(is_approximate):
  pre, g = random_pre(), random_pre(seed=1)

  def weighted(pre):
    f = selection.top_k(pre, 40, is_approximate=is_approximate)
    return jnp.sum(f * g)

  got = jax.grad(weighted)(jnp.asarray(pre))
  want = np.where(sorted_top_k(pre, 40) > 0, g, 0)
  np.testing.assert_array_equal(got, want)


def test_top_k_of_equals_takes_no_more_than_k():
  got = selection.top_k(jnp.full((3, 8), 2.0), 5)
  np.testing.assert_array_equal(np.sort(got, axis=1), [[0] * 3 + [2.0] * 5] * 3)


VALUES = {
  'random': np.maximum(random_pre(), 0),
  'positive': np.abs(random_pre()),
  'ties': np.random.default_rng(2).integers(0, 4, (32, 64)).astype('float32'),
  'zeros': np.zeros((32, 64), 'float32'),
  'all magnitudes': 10.0 ** np.linspace(-44, 38, 2048, dtype='float32'),
  'largest float': np.array([3.4028235e38, 0.0, 1e-45], 'float32'),
}


@pytest.mark.parametrize('name', VALUES)
def test_kth_largest_equals_a_sort(name):
  values = VALUES[name]
  descending = np.sort(values.ravel())[::-1]
  for k in {1, 2, len(descending) // 3, len(descending) - 1, len(descending)}:
    got = selection.kth_largest(jnp.asarray(values), k)
    assert got.dtype == 'float32'
    assert got.shape == ()
    # Bit for bit: comparisons flush subnormal numbers to zero.
    assert np.asarray(got).view('int32') == descending[k - 1].view('int32'), k


@pytest.mark.parametrize(
  ('rows', 'count'),
  [
    (4096, 2**20),  # 2^32 elements of a batch
    (2048, 2**20),  # 2^31
    (2047, 2**20 + 511),
    (selection.MOST_ROWS, selection.MOST_LATENTS),  # 2^43
    (2**19, 4095),  # all of it in the lower bits
    (7, 3),
    (1, 0),
  ],
)
def test_counts_add_up_beyond_32_bits(rows, count):
  count_B, total = jnp.full(rows, count, 'int32'), rows * count
  add_up_to = jax.jit(selection.add_up_to, static_argnums=1)
  for k in (max(total - 1, 0), total, total + 1, total + 2**31, total + 2**32):
    assert bool(add_up_to(count_B, k)) == (total >= k), k
  for k in (total // 2, total - 2**31, total - 2**32):
    assert bool(add_up_to(count_B, max(k, 0)))


def test_unequal_counts_add_up():
  rng = np.random.default_rng(0)
  count_B = rng.integers(0, 2**24, 5000).astype('int32')
  total = int(count_B.sum(dtype='int64'))
  assert total > 2**35
  assert bool(selection.add_up_to(jnp.asarray(count_B), total))
  assert not bool(selection.add_up_to(jnp.asarray(count_B), total + 1))


def test_kth_largest_has_no_gradient():
  values = jnp.asarray(np.abs(random_pre()))
  got = jax.grad(lambda values: selection.kth_largest(values, 7))(values)
  np.testing.assert_array_equal(got, np.zeros((32, 64)))


@pytest.mark.parametrize('data', [1, 2, 8])
def test_mesh_finds_the_same(data):
  pre = random_pre()
  mesh = sharding.make_mesh(data, 8 // data)
  layout = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec('data', 'latent')
  )
  placed = jax.device_put(pre, layout)
  assert len(placed.addressable_shards) == 8

  def select(pre):
    return selection.top_k(pre, 5), selection.kth_largest(jax.nn.relu(pre), 100)

  got_BM, got = jax.jit(sharding.on(mesh, select))(placed)
  np.testing.assert_array_equal(got_BM, sorted_top_k(pre, 5))
  assert got == np.sort(pre.ravel())[-100]


@pytest.mark.parametrize('k', [5, 40])  # a device has 32 latents
def test_equals_are_in_the_order_of_latents_over_a_mesh(k):
  rng = np.random.default_rng(1)
  pre = rng.integers(-3, 4, size=(40, 128)).astype('float32')
  mesh = sharding.make_mesh(2, 4)

  def select(pre):
    return *selection.largest(pre, k, False), selection.top_k(pre, k)

  placed = jax.device_put(pre, sharding.of_batch(mesh))
  value, index, f = jax.jit(sharding.on(mesh, select))(placed)
  want = np.argsort(-pre, axis=1, kind='stable')[:, :k]
  np.testing.assert_array_equal(index, want)
  wanted = np.take_along_axis(pre, want, axis=1)
  np.testing.assert_array_equal(value, wanted)
  want_f = np.zeros_like(pre)
  np.put_along_axis(want_f, want, np.maximum(wanted, 0), axis=1)
  np.testing.assert_array_equal(f, want_f)


def test_top_k_of_a_mesh_gathers_no_more_than_k_of_each_device():
  mesh = sharding.make_mesh(2, 4)
  layout = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec('data', 'latent')
  )
  pre = np.random.default_rng(2).normal(size=(64, 4096)).astype('float32')
  select = jax.jit(
    sharding.on(mesh, lambda pre: selection.top_k(pre, 3)),
    out_shardings=layout,
  )
  compiled = select.lower(jax.device_put(pre, layout)).compile()
  found = list(programs.collectives(compiled.as_text()))
  # Of each of a device's 32 rows: values and places of 3 latents of 4 devices.
  assert found
  assert sum(c.num_bytes for c in found) <= 32 * 4 * 3 * (4 + 4)


def test_kth_largest_of_a_mesh_gathers_nothing():
  mesh = sharding.make_mesh(2, 4)
  layout = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec('data', 'latent')
  )
  placed = jax.device_put(np.abs(random_pre()), layout)
  find = jax.jit(lambda values: selection.kth_largest(values, 100))
  program = find.lower(placed).compile().as_text()
  assert 'all-reduce' in program
  assert 'all-gather' not in program
  assert 'all-to-all' not in program
  found = list(programs.collectives(program))
  # Counts of a device's 16 rows at most, never the rows.
  assert sum(c.num_bytes for c in found) <= 31 * (16 + 2) * 4
