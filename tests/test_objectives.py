"""The losses and their gradients, against the papers' equations."""

from helpers import random_jumprelu
from helpers import reference
from helpers.random_saes import assert_loss_and_gradients_equal
from helpers.random_saes import loss_and_gradients_of
from helpers.random_saes import loss_of
from helpers.random_saes import random_of
from helpers.random_saes import random_rows
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from jumprelu_jax import architectures
from jumprelu_jax import errors
from jumprelu_jax import objectives
from jumprelu_jax import ops
from jumprelu_jax.sae import gated
from jumprelu_jax.sae import jumprelu
from jumprelu_jax.sae import relu

NUMBERS = {
  'sparsity_coeff': 0.3,
  'bandwidth': 0.2,
  'target_l0': 3.0,
  'frequency_scale': 0.2,
  'tanh_scale': 1.5,
  'pre_activation_coeff': 0.4,
}
PENALTIES = sorted(architectures.ARCHITECTURES['jumprelu'].trained_by)
PENALTIES.remove('aux_k')  # in test_topk


def l0(sae, x_BD, sparsity_coeff, bandwidth):
  numbers = {'sparsity_coeff': sparsity_coeff, 'bandwidth': bandwidth}
  loss, (metrics, _) = loss_of('l0', sae, x_BD, numbers)
  return loss, metrics


def gradient(sae, x_BD, sparsity_coeff, bandwidth):
  numbers = {'sparsity_coeff': sparsity_coeff, 'bandwidth': bandwidth}
  return loss_and_gradients_of('l0', sae, x_BD, numbers)[1]


def test_loss_equals_equation_9():
  sae, x_BD = random_jumprelu.make(), random_jumprelu.make_rows()
  *weights, log_threshold = random_jumprelu.as_float64(sae)
  x = np.asarray(x_BD, np.float64)
  _, f, x_hat = reference.forward(x, *weights, np.exp(log_threshold))
  loss, metrics = l0(sae, x_BD, 0.3, 0.1)
  np.testing.assert_allclose(loss, reference.loss(x, x_hat, f, 0.3), rtol=1e-5)
  np.testing.assert_allclose(metrics['l0'], (f > 0).sum(-1).mean(), rtol=1e-6)
  np.testing.assert_allclose(metrics['loss/l0'], 0.3 * metrics['l0'], rtol=1e-6)
  squared_error = ((x - x_hat) ** 2).sum(-1).mean()
  np.testing.assert_allclose(metrics['squared_error'], squared_error, rtol=1e-5)


def test_gradients_equal_the_equations():
  sae, x_BD = random_jumprelu.make(), random_jumprelu.make_rows()
  expected = reference.gradients(
    np.asarray(x_BD, np.float64), random_jumprelu.as_float64(sae), 0.3, 0.1
  )
  got = gradient(sae, x_BD, 0.3, 0.1)
  for name in random_jumprelu.PARAMS:
    largest = np.abs(expected[name]).max()
    assert largest > 0, name
    np.testing.assert_allclose(
      getattr(got, name), expected[name], atol=1e-5 * largest, err_msg=name
    )


def test_only_thresholds_see_the_sparsity_coefficient():
  sae, x_BD = random_jumprelu.make(), random_jumprelu.make_rows()
  weak, strong = (gradient(sae, x_BD, coeff, 0.1) for coeff in (0.0, 10.0))
  for name in ('W_enc', 'b_enc', 'W_dec', 'b_dec'):
    np.testing.assert_array_equal(getattr(weak, name), getattr(strong, name))
  assert np.abs(strong.log_threshold - weak.log_threshold).max() > 0.1


def test_bfloat16_compute_is_close_to_float32():
  sae, x_BD = random_jumprelu.make(), random_jumprelu.make_rows()
  exact, _ = l0(sae, x_BD, 0.3, 0.1)
  rounded, metrics = l0(sae.replace(compute_dtype='bfloat16'), x_BD, 0.3, 0.1)
  np.testing.assert_allclose(rounded, exact, rtol=1e-2)
  assert rounded != exact
  assert rounded.dtype == metrics['l0'].dtype == 'float32'


def test_target_is_not_shifted_by_the_pre_encoder_bias():
  sae = random_jumprelu.make()
  closed = sae.replace(log_threshold=jnp.full(40, 10.0))  # nothing fires
  x_BD = random_jumprelu.make_rows()
  loss, _ = l0(closed, x_BD, 0.0, 0.1)
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
  sae = random_jumprelu.make(d_model, num_latents).replace(
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


def wanted(
  name, rows, *, latents=reference.jumprelu, numbers=NUMBERS, **kwargs
):
  """The loss in NumPy as a function of parameters.

  Args:
    name: of the objective.
    rows: (x_BD, y_BD), or x_BD.
    latents: in `reference`.
    numbers: coefficients.
    kwargs: of `latents`; and prefixes.
  """
  prefixes = kwargs.pop('prefixes', ())
  pair = rows if isinstance(rows, tuple) else (rows, rows)
  x, y = (np.asarray(side, np.float64) for side in pair)

  def loss(p):
    h = latents(x, p, **kwargs)
    y_hats = reference.predictions(h, x, p)
    if prefixes:
      y_hats = reference.prefix_predictions(h, p, prefixes)
    return reference.objective(name, h, y, y_hats, p, numbers)

  return loss


@pytest.mark.parametrize('estimator', ops.ESTIMATORS)
@pytest.mark.parametrize('name', [*PENALTIES, 'tanh+pre_activation'])
def test_penalty_and_gradients_equal_the_formulas(name, estimator):
  x_BD = random_rows()
  reaches_encoder = estimator == 'threshold_and_encoder'
  assert_loss_and_gradients_equal(
    wanted(name, x_BD, bandwidth=0.2, reaches_encoder=reaches_encoder),
    name,
    random_of(jumprelu.JumpReLU),
    x_BD,
    NUMBERS,
    jump=ops.Jump(ops.ESTIMATORS[estimator]),
  )


def test_every_objective_has_an_equation():
  assert set(reference.PENALTIES) == set(objectives.OBJECTIVES)


def test_reconstruction_alone_has_no_penalty():
  x_BD = random_rows()
  want = wanted('reconstruction', x_BD, bandwidth=0.2)
  assert_loss_and_gradients_equal(
    want, 'reconstruction', random_of(jumprelu.JumpReLU), x_BD, NUMBERS
  )


def test_joined_penalties_add_up_and_are_logged_apart():
  sae, x_BD = random_of(jumprelu.JumpReLU), random_rows()
  loss, (metrics, _) = loss_of('tanh+pre_activation+l0', sae, x_BD, NUMBERS)
  parts = ('squared_error', 'loss/tanh', 'loss/pre_activation', 'loss/l0')
  assert set(metrics) == {
    *parts, 'l0', 'mean_threshold', 'extreme_thresholds', 'penalty',
  }  # fmt: skip
  assert min(metrics[part] for part in parts) > 0
  np.testing.assert_allclose(loss, sum(metrics[p] for p in parts), rtol=1e-6)
  # Lambda weighs two of them.
  by_lambda = metrics['loss/tanh'] + metrics['loss/l0']
  np.testing.assert_allclose(metrics['penalty'], by_lambda, rtol=1e-6)


@pytest.mark.parametrize('name', sorted(objectives.OBJECTIVES))
def test_penalty_is_what_lambda_weighs(name):
  # Twice the lambda adds it once more.
  cls = gated.Gated if 'gated' in name else jumprelu.JumpReLU
  sae, x_BD = random_of(cls), random_rows()
  numbers = NUMBERS | {
    'aux_k': 3,
    'aux_k_coeff': 0.5,
    'dead_M': np.arange(16) < 5,
  }
  once, (metrics, _) = loss_of(name, sae, x_BD, numbers)
  twice, _ = loss_of(name, sae, x_BD, numbers | {'sparsity_coeff': 0.6})
  np.testing.assert_allclose(
    metrics['penalty'], twice - once, rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('l0+l2', "'l2' is not known; expected one of .*target_l0"),
    ('l0+tanh+l0', 'a part is there twice'),
    ('', "'' is not known"),
  ],
)
def test_wrong_name_of_an_objective_is_refused(name, message):
  with pytest.raises(errors.InputError, match=message):
    objectives.penalties(name)


def test_each_latent_can_have_its_own_bandwidth():
  x_BD = random_rows()
  widths_M = np.random.default_rng(7).uniform(0.05, 0.5, 16)
  numbers = NUMBERS | {'bandwidth': jnp.asarray(widths_M, 'float32')}
  assert_loss_and_gradients_equal(
    wanted('target_l0', x_BD, bandwidth=widths_M),
    'target_l0',
    random_of(jumprelu.JumpReLU),
    x_BD,
    numbers,
  )


@pytest.mark.parametrize('uses_b_dec', [True, False])
@pytest.mark.parametrize('name', ['l0', 'tanh+pre_activation'])
@pytest.mark.parametrize(
  'cls', [jumprelu.RawThresholdJumpReLU, jumprelu.FreeNormJumpReLU]
)
def test_variant_of_jumprelu_has_the_gradients_of_its_parameters(
  cls, name, uses_b_dec
):
  x_BD = random_rows()
  assert_loss_and_gradients_equal(
    wanted(name, x_BD, bandwidth=0.2, uses_b_dec=uses_b_dec),
    name,
    random_of(cls, use_pre_encoder_bias=uses_b_dec),
    x_BD,
    NUMBERS,
  )


@pytest.mark.parametrize('uses_b_dec', [True, False])
@pytest.mark.parametrize('name', ['ri_l1', 'tanh'])
def test_relu_is_trained_by_l1_of_norm_weighted_latents(name, uses_b_dec):
  x_BD = random_rows()
  assert_loss_and_gradients_equal(
    wanted(name, x_BD, latents=reference.rectified, uses_b_dec=uses_b_dec),
    name,
    random_of(relu.ReLU, use_pre_encoder_bias=uses_b_dec),
    x_BD,
    NUMBERS,
  )


@pytest.mark.parametrize('cls', [relu.ReLU, jumprelu.FreeNormJumpReLU])
@pytest.mark.parametrize('name', ['ri_l1', 'tanh+pre_activation', 'l0'])
def test_free_norms_can_be_rescaled_without_a_change(cls, name):
  # Latents times a and rows over a: the same function at the same cost.
  if cls is relu.ReLU and name == 'tanh+pre_activation':
    name = 'tanh'
  sae, x_BD = random_of(cls), random_rows()
  factor_M = jnp.asarray(
    np.random.default_rng(3).uniform(0.3, 3, 16), 'float32'
  )
  scaled = sae.replace(
    W_enc=sae.W_enc * factor_M[None],
    b_enc=sae.b_enc * factor_M,
    W_dec=sae.W_dec / factor_M[:, None],
  )
  if cls is jumprelu.FreeNormJumpReLU:
    log_threshold = sae.log_threshold + jnp.log(factor_M)
    scaled = scaled.replace(log_threshold=log_threshold)
  before, after = (loss_of(name, s, x_BD, NUMBERS)[0] for s in (sae, scaled))
  np.testing.assert_allclose(after, before, rtol=1e-5)


def test_matryoshka_sums_the_errors_of_its_prefixes():
  sae, x_BD = random_of(jumprelu.JumpReLU), random_rows()
  prefixes = (3, 8, 16)
  assert_loss_and_gradients_equal(
    wanted('l0', x_BD, bandwidth=0.2, prefixes=prefixes),
    'l0',
    sae,
    x_BD,
    NUMBERS | {'prefixes': prefixes},
    reconstruct=objectives.nested,
  )


def test_matryoshka_logs_the_error_of_all_latents():
  sae, x_BD = random_of(jumprelu.JumpReLU), random_rows()
  numbers = NUMBERS | {'prefixes': (3, 8, 16)}
  _, (metrics, _) = loss_of(
    'l0', sae, x_BD, numbers, reconstruct=objectives.nested
  )
  _, (alone, _) = loss_of('l0', sae, x_BD, NUMBERS)
  np.testing.assert_allclose(
    metrics['squared_error'], alone['squared_error'], rtol=1e-6
  )


@pytest.mark.parametrize('has_skip', [False, True])
def test_transcoder_predicts_its_target(has_skip):
  sae = random_of(jumprelu.JumpReLU, widths=(6, 5), has_skip=has_skip)
  pair = (random_rows(), random_rows(5, seed=2))
  assert_loss_and_gradients_equal(
    wanted('l0', pair, bandwidth=0.2, uses_b_dec=False),
    'l0',
    sae,
    pair,
    NUMBERS,
  )


def test_target_penalties_differ_by_the_variance_of_l0():
  # E(L/T - 1)^2 = (E L/T - 1)^2 + Var(L) / T^2: they are two losses.
  sae, x_BD = random_jumprelu.make(), random_jumprelu.make_rows()
  numbers = {'sparsity_coeff': 1.0, 'bandwidth': 0.1, 'target_l0': 7.0}
  per_row, mean = (
    loss_of(name, sae, x_BD, numbers)[0]
    for name in ('target_l0', 'target_mean_l0')
  )
  l0_B = np.asarray(sae.encode(x_BD) > 0).sum(1)
  np.testing.assert_allclose(per_row - mean, l0_B.var() / 49, rtol=1e-3)
