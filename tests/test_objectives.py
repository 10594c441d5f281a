"""The loss and its gradients, against the paper's equations."""

import jax
from jax import numpy as jnp
import numpy as np
import pytest
import reference
from test_sae import PARAMS
from test_sae import as_float64
from test_sae import random_sae
from test_sae import rows

from jumprelu_jax import objectives
from jumprelu_jax import ops

l0 = objectives.OBJECTIVES['l0']


def gradient(sae, x_BD, sparsity_coeff, bandwidth):
  coefficients = objectives.Coefficients(sparsity_coeff, bandwidth)
  return jax.grad(lambda s: l0(s, x_BD, coefficients)[0])(sae)


def test_loss_equals_equation_9():
  sae, x_BD = random_sae(), rows()
  *weights, log_threshold = as_float64(sae)
  x = np.asarray(x_BD, np.float64)
  _, f, x_hat = reference.forward(x, *weights, np.exp(log_threshold))
  loss, terms = l0(sae, x_BD, objectives.Coefficients(0.3, 0.1))
  np.testing.assert_allclose(loss, reference.loss(x, x_hat, f, 0.3), rtol=1e-5)
  np.testing.assert_allclose(terms['l0'], (f > 0).sum(-1).mean(), rtol=1e-6)


def test_gradients_equal_the_equations():
  sae, x_BD = random_sae(), rows()
  expected = reference.gradients(
    np.asarray(x_BD, np.float64), as_float64(sae), 0.3, 0.1
  )
  got = gradient(sae, x_BD, 0.3, 0.1)
  for name in PARAMS:
    largest = np.abs(expected[name]).max()
    assert largest > 0, name
    np.testing.assert_allclose(
      getattr(got, name), expected[name], atol=1e-5 * largest, err_msg=name
    )


def test_only_thresholds_see_the_sparsity_coefficient():
  sae, x_BD = random_sae(), rows()
  weak, strong = (gradient(sae, x_BD, coeff, 0.1) for coeff in (0.0, 10.0))
  for name in ('W_enc', 'b_enc', 'W_dec', 'b_dec'):
    np.testing.assert_array_equal(getattr(weak, name), getattr(strong, name))
  assert np.abs(strong.log_threshold - weak.log_threshold).max() > 0.1


def test_bfloat16_compute_is_close_to_float32():
  sae, x_BD = random_sae(), rows()
  coefficients = objectives.Coefficients(0.3, 0.1)
  exact, _ = l0(sae, x_BD, coefficients)
  rounded, terms = l0(sae.replace(compute_dtype='bfloat16'), x_BD, coefficients)
  np.testing.assert_allclose(rounded, exact, rtol=1e-2)
  assert rounded != exact
  assert rounded.dtype == terms['l0'].dtype == 'float32'


def test_target_is_not_shifted_by_the_pre_encoder_bias():
  sae = random_sae()
  closed = sae.replace(log_threshold=jnp.full(40, 10.0))  # nothing fires
  x_BD = rows()
  loss, _ = l0(closed, x_BD, objectives.Coefficients(0.0, 0.1))
  expected = np.mean(
    np.sum((np.asarray(x_BD) - np.asarray(sae.b_dec)) ** 2, axis=-1)
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_threshold_gradient_is_derivative_of_expected_loss():
  """Eq. 13: finite differences of the loss over 4M Gaussian samples."""
  d_model, num_latents, samples, bandwidth, coeff = 3, 4, 4_000_000, 0.04, 0.4
  rng = np.random.default_rng(3)
  W_dec = rng.normal(size=(num_latents, d_model))
  W_dec /= np.linalg.norm(W_dec, axis=1, keepdims=True)
  threshold = np.array([0.5, 0.4, 0.7, 0.6])
  x = rng.normal(size=(samples, d_model)).astype('float32')
  pre = x @ W_dec.T.astype('float32')

  def expected_loss(threshold):
    f = pre * (pre > threshold)
    x_hat = f @ W_dec.astype('float32')
    total = ((x - x_hat) ** 2).sum(-1) + coeff * (f > 0).sum(-1)
    return total.mean(dtype=np.float64)

  half = bandwidth / 2
  expected = [
    (expected_loss(threshold + step) - expected_loss(threshold - step))
    / bandwidth
    for step in half * np.eye(num_latents)
  ]
  sae = random_sae(d_model, num_latents).replace(
    W_enc=jnp.asarray(W_dec.T, 'float32'),
    b_enc=jnp.zeros(num_latents),
    W_dec=jnp.asarray(W_dec, 'float32'),
    b_dec=jnp.zeros(d_model),
    log_threshold=jnp.asarray(np.log(threshold), 'float32'),
  )
  chunks = jnp.asarray(x).reshape(8, -1, d_model)
  per_chunk = jax.jit(
    lambda c: gradient(sae, c, coeff, bandwidth).log_threshold
  )
  got = np.mean([per_chunk(c) for c in chunks], axis=0) / threshold
  np.testing.assert_allclose(got, expected, rtol=0.02)
  assert np.abs(expected).min() > 0.01


NUMBERS = {
  'sparsity_coeff': 0.3,
  'bandwidth': 0.2,
  'target_l0': 7.0,
  'frequency_scale': 0.2,
  'tanh_scale': 1.5,
  'pre_activation_coeff': 0.4,
}


def free_norm_sae():
  """A random SAE whose decoder rows differ in norm."""
  sae = random_sae()
  factor = np.random.default_rng(5).uniform(0.3, 2.0, (40, 1))
  return sae.replace(W_dec=sae.W_dec * jnp.asarray(factor, 'float32'))


@pytest.mark.parametrize('estimator', ops.ESTIMATORS)
@pytest.mark.parametrize('name', objectives.OBJECTIVES)
def test_objective_and_gradients_equal_the_formulas(name, estimator):
  sae, x_BD = free_norm_sae(), rows()
  want, want_gradients = reference.objective(
    name,
    np.asarray(x_BD, np.float64),
    as_float64(sae),
    NUMBERS,
    reaches_encoder=estimator == 'threshold_and_encoder',
  )
  jump = objectives.Jump(ops.ESTIMATORS[estimator])

  def loss_fn(sae):
    return objectives.OBJECTIVES[name](
      sae, x_BD, objectives.Coefficients(**NUMBERS), jump
    )[0]

  loss, gradients = jax.value_and_grad(loss_fn)(sae)
  np.testing.assert_allclose(loss, want, rtol=1e-5)
  for param in PARAMS:
    largest = np.abs(want_gradients[param]).max()
    assert largest > 0, param
    np.testing.assert_allclose(
      getattr(gradients, param),
      want_gradients[param],
      atol=1e-5 * largest,
      err_msg=param,
    )


def test_target_penalties_differ_by_the_variance_of_l0():
  # E(L/T - 1)^2 = (E L/T - 1)^2 + Var(L) / T^2: they are two losses.
  sae, x_BD = random_sae(), rows()
  c = objectives.Coefficients(1.0, 0.1, target_l0=7.0)
  per_row, mean = (
    objectives.OBJECTIVES[name](sae, x_BD, c)[0]
    for name in ('target_l0', 'target_mean_l0')
  )
  l0_B = np.asarray(sae.encode(x_BD) > 0).sum(1)
  np.testing.assert_allclose(per_row - mean, l0_B.var() / 49, rtol=1e-3)
