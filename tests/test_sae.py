"""SAEs: values, folding, initialisation."""

from helpers import random_jumprelu
from helpers import reference
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from jumprelu_jax import objectives
from jumprelu_jax import ops
from jumprelu_jax.sae import jumprelu


def test_encode_and_decode_equal_the_equations():
  sae, x_BD = random_jumprelu.make(), random_jumprelu.make_rows()
  *weights, log_threshold = random_jumprelu.as_float64(sae)
  _, f, x_hat = reference.forward(
    np.asarray(x_BD, np.float64), *weights, np.exp(log_threshold)
  )
  got_BM = sae.encode(x_BD)
  np.testing.assert_allclose(got_BM, f, atol=1e-5)
  np.testing.assert_array_equal(got_BM > 0, f > 0)
  np.testing.assert_allclose(sae.decode(got_BM), x_hat, atol=1e-5)


@pytest.mark.parametrize('use_pre_encoder_bias', [True, False])
def test_folding_changes_no_output(use_pre_encoder_bias):
  sae = random_jumprelu.make(use_pre_encoder_bias=use_pre_encoder_bias)
  scale = 37.5
  raw_BD = scale * random_jumprelu.make_rows()
  folded = sae.fold(scale)
  f_BM = scale * sae.encode(raw_BD / scale)
  x_hat_BD = scale * sae.decode(sae.encode(raw_BD / scale))
  got_BM = folded.encode(raw_BD)
  np.testing.assert_array_equal(got_BM > 0, f_BM > 0)
  np.testing.assert_allclose(got_BM, f_BM, rtol=1e-5, atol=1e-5 * scale)
  np.testing.assert_allclose(
    folded.decode(got_BM), x_hat_BD, rtol=1e-5, atol=1e-5 * scale
  )


def test_initial_parameters_follow_gemma_scope(make_run):
  config = make_run(sae__initial_threshold=0.001).sae
  sae = jumprelu.init(jax.random.key(0), (64,), config)
  np.testing.assert_allclose(
    np.linalg.norm(sae.W_dec, axis=1), np.ones(256), rtol=1e-6
  )
  np.testing.assert_array_equal(sae.W_enc, sae.W_dec.T)
  np.testing.assert_allclose(sae.threshold, np.full(256, 0.001), rtol=1e-6)
  assert not sae.b_enc.any()
  assert not sae.b_dec.any()
  # Uniform directions: entries have mean 0 and variance 1 / D.
  np.testing.assert_allclose(np.var(sae.W_dec), 1 / 64, rtol=0.02)
  assert sae.W_dec.dtype == sae.log_threshold.dtype == 'float32'


def test_negative_pre_activations_push_a_narrow_threshold_up():
  # The paper's ReLU before the jump: below half a bandwidth every negative
  # sample is in the window, and the L0 term then raises the threshold.
  sae = random_jumprelu.make(num_latents=1).replace(
    W_enc=jnp.zeros((12, 1)), b_enc=jnp.array([-3.0]), b_dec=jnp.zeros(12)
  )
  coefficients = objectives.Coefficients(1.0, 0.1)

  def gradient(threshold):
    narrow = sae.replace(log_threshold=jnp.log(jnp.array([threshold])))

    def loss(sae):
      x_BD = jnp.zeros((5, 12))
      penalties = objectives.penalties('l0')
      return objectives.evaluate(
        objectives.whole, penalties, ops.Jump(), sae, x_BD, x_BD, coefficients
      )[0]

    return float(jax.grad(loss)(narrow).log_threshold[0])

  # d/d log(threshold) = -threshold / bandwidth for all samples: it goes up.
  np.testing.assert_allclose(gradient(0.04), -0.04 / 0.1, rtol=1e-5)
  assert gradient(0.06) == 0


def test_raw_thresholds_stay_at_or_above_zero(make_run):
  config = make_run(sae__num_latents=3, sae__initial_threshold=0.1).sae
  sae = jumprelu.init_raw_threshold(jax.random.key(0), (8,), config)
  np.testing.assert_allclose(sae.threshold, [0.1] * 3)
  moved = sae.replace(threshold=jnp.array([-0.2, 0.0, 0.3])).constrain()
  np.testing.assert_allclose(moved.threshold, [0, 0, 0.3])


def test_wrong_activation_size_is_refused():
  with pytest.raises(ValueError, match='D=12, but D=13'):
    random_jumprelu.make().encode(jnp.zeros((4, 13)))
