"""Initial biases: means, medians, and how often latents fire."""

import dataclasses

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from jumprelu_jax.sae import biases
from jumprelu_jax.sae import jumprelu
from jumprelu_jax.sae import relu


@pytest.fixture
def config(make_run):
  return dataclasses.replace(make_run().sae, num_latents=16)


def cloud(count=301, d_model=6, seed=0):
  """Rows far from zero, with a few outliers further away."""
  x = np.random.default_rng(seed).normal(size=(count, d_model)) + 2
  x[:10] += 500
  return x.astype('float32')


def mean_distance(x, point):
  return np.linalg.norm(x - point, axis=1).mean()


def weiszfeld(x, steps=10_000):
  """The geometric median in float64."""
  median = x.mean(0)
  for _ in range(steps):
    weight = 1 / np.linalg.norm(x - median, axis=1)
    median = weight @ x / weight.sum()
  return median


def test_which_biases_are_wanted(config):
  assert not biases.are_wanted(config)
  for changed in ({'initial_b_dec': 'mean'}, {'initial_frequency': 0.1}):
    assert biases.are_wanted(dataclasses.replace(config, **changed))


def test_mean_is_that_of_the_targets(config):
  config = dataclasses.replace(config, initial_b_dec='mean')
  sae = jumprelu.init(jax.random.key(0), (6, 5), config)
  x, y = cloud(), cloud(d_model=5, seed=1)
  got = biases.from_data(sae, x, y, config)
  np.testing.assert_allclose(got.b_dec, y.astype(float).mean(0), rtol=1e-5)
  assert not got.b_enc.any()


def test_geometric_median_equals_weiszfelds(config):
  config = dataclasses.replace(config, initial_b_dec='geometric_median')
  sae = jumprelu.init(jax.random.key(0), (6,), config)
  x = cloud()
  got = np.asarray(biases.from_data(sae, x, x, config).b_dec, np.float64)
  want = weiszfeld(x.astype(np.float64))
  np.testing.assert_allclose(got, want, atol=1e-3)
  # Outliers hardly move it, and the mean by 500 * 10 / 301.
  assert np.abs(got - 2).max() < 0.3
  assert x.mean(0).min() > 15
  # It is the least: a step either way is further from the rows.
  for step in 0.05 * np.eye(6):
    for moved in (got + step, got - step):
      assert mean_distance(x, moved) > mean_distance(x, got)


def test_geometric_median_of_a_symmetric_cloud_is_its_centre():
  half = np.random.default_rng(0).standard_cauchy((500, 4))
  x = 3 + np.concatenate([half, -half])
  got = biases.geometric_median(jnp.asarray(x, 'float32'))
  np.testing.assert_allclose(got, [3.0] * 4, atol=1e-2)


def test_geometric_median_may_be_a_row():
  # The mean of the first guess is a row: its distance is not divided by.
  x = jnp.array([[1.0, 1.0], [0.0, 1.0], [2.0, 1.0], [1.0, 0.0], [1.0, 2.0]])
  np.testing.assert_allclose(biases.geometric_median(x), [1.0, 1.0], atol=1e-5)


INITS = {
  'jumprelu': jumprelu.init,
  'raw threshold': jumprelu.init_raw_threshold,
  'free norm': jumprelu.init_free_norm,
  'relu': relu.init,
}


@pytest.mark.parametrize('initial_b_dec', ['zeros', 'mean'])
@pytest.mark.parametrize('name', INITS)
def test_each_latent_fires_on_its_share_of_the_rows(
  config, name, initial_b_dec
):
  config = dataclasses.replace(
    config,
    initial_frequency=0.05,
    initial_b_dec=initial_b_dec,
    initial_threshold=0.3,
    use_pre_encoder_bias=True,
  )
  x = cloud(count=2000)
  sae = INITS[name](jax.random.key(0), (6,), config)
  assert np.ptp(np.mean(sae.encode(jnp.asarray(x)) > 0, axis=0)) > 0.1
  sae = biases.from_data(sae, x, x, config)
  frequency_M = np.mean(np.asarray(sae.encode(jnp.asarray(x))) > 0, axis=0)
  np.testing.assert_allclose(frequency_M, [0.05] * 16, atol=1.5 / 2000)
  if initial_b_dec == 'zeros':
    assert not sae.b_dec.any()


def test_transcoders_latents_fire_on_a_share_of_the_inputs(config):
  config = dataclasses.replace(
    config, initial_frequency=0.1, initial_b_dec='geometric_median'
  )
  sae = jumprelu.init(jax.random.key(0), (6, 5), config)
  x, y = cloud(count=2000), cloud(count=2000, d_model=5, seed=1)
  sae = biases.from_data(sae, x, y, config)
  frequency_M = np.mean(np.asarray(sae.encode(jnp.asarray(x))) > 0, axis=0)
  np.testing.assert_allclose(frequency_M, [0.1] * 16, atol=1.5 / 2000)
  assert sae.b_dec.shape == (5,)
  assert np.abs(np.asarray(sae.b_dec) - 2).max() < 0.3
