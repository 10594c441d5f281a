"""The largest pre-activations, against NumPy's sort."""

import jax
from jax import numpy as jnp
import numpy as np
import pytest

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

  @jax.jit
  def select(pre):
    return selection.top_k(pre, 5), selection.kth_largest(jax.nn.relu(pre), 100)

  got_BM, got = select(placed)
  np.testing.assert_array_equal(got_BM, sorted_top_k(pre, 5))
  assert got == np.sort(pre.ravel())[-100]


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
