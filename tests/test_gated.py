"""Gated SAEs: their two losses, and the JumpReLU SAEs that they amount to."""

import dataclasses

from helpers import reference
from helpers.random_saes import assert_loss_and_gradients_equal
from helpers.random_saes import float64_params
from helpers.random_saes import loss_and_gradients_of
from helpers.random_saes import loss_of
from helpers.random_saes import random_of
from helpers.random_saes import random_rows
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from jumprelu_jax.sae import gated
from jumprelu_jax.sae import released

NUMBERS = {'sparsity_coeff': 0.3, 'bandwidth': 0.1}
LOSSES = {'gated': gated.Gated, 'gated_ri_l1': gated.FreeNormGated}


def wanted(name, x_BD, uses_b_dec):
  x = np.asarray(x_BD, np.float64)

  def loss(p):
    h = reference.gated(x, p, uses_b_dec=uses_b_dec)
    y_hats = reference.predictions(h, x, p)
    return reference.objective(name, h, x, y_hats, p, NUMBERS)

  return loss


@pytest.mark.parametrize('uses_b_dec', [True, False])
@pytest.mark.parametrize('name', LOSSES)
def test_loss_and_gradients_equal_the_equations(name, uses_b_dec):
  x_BD = random_rows()
  assert_loss_and_gradients_equal(
    wanted(name, x_BD, uses_b_dec),
    name,
    random_of(LOSSES[name], use_pre_encoder_bias=uses_b_dec),
    x_BD,
    NUMBERS,
  )


def test_gate_error_trains_the_decoder_only_with_ri_l1():
  # Nothing fires, but every gate is open: magnitudes are far below zero.
  sae = random_of(gated.Gated, use_pre_encoder_bias=False).replace(
    b_gate=jnp.full(16, 3.0), b_mag=jnp.full(16, -9.0)
  )
  x_BD = random_rows()
  frozen, free = (
    loss_and_gradients_of(name, sae, x_BD, NUMBERS)[1]
    for name in ('gated', 'gated_ri_l1')
  )
  np.testing.assert_array_equal(frozen.W_dec, np.zeros((16, 6)))
  assert np.abs(free.W_dec).max() > 0.1
  # b_dec has the reconstruction's gradient alone, once, not twice.
  mean_error_D = np.mean(np.asarray(sae.b_dec) - np.asarray(x_BD), axis=0)
  np.testing.assert_allclose(frozen.b_dec, 2 * mean_error_D, rtol=1e-4)


def test_l1_weighs_the_gate_and_not_the_activations():
  sae, x_BD = random_of(gated.Gated), random_rows()
  _, (metrics, encoding) = loss_of('gated', sae, x_BD, NUMBERS)
  gate = (np.asarray(x_BD) - np.asarray(sae.b_dec)) @ np.asarray(sae.W_enc)
  positive = np.maximum(gate + np.asarray(sae.b_gate), 0)
  want = 0.3 * positive.sum(1).mean()
  np.testing.assert_allclose(metrics['loss/l1'], want, rtol=1e-5)
  assert abs(0.3 * encoding.f.sum(1).mean() - want) > 0.1
  # L0 counts what fires: open gates whose magnitudes are positive.
  np.testing.assert_array_equal(encoding.active, encoding.f > 0)
  np.testing.assert_allclose(
    metrics['l0'], (encoding.f > 0).sum(1).mean(), rtol=1e-6
  )


@pytest.mark.parametrize('scale', [1.0, 23.0])
@pytest.mark.parametrize('uses_b_dec', [True, False])
@pytest.mark.parametrize('cls', [gated.Gated, gated.FreeNormGated])
def test_folding_gives_the_same_jumprelu_on_raw_data(cls, uses_b_dec, scale):
  sae = random_of(cls, use_pre_encoder_bias=uses_b_dec).constrain()
  raw = scale * np.asarray(random_rows(), np.float64)
  p = float64_params(sae)
  h = reference.gated(raw / scale, p, uses_b_dec=uses_b_dec)
  (x_hat,) = reference.predictions(h, raw, p)
  # Below zero, the gate never closes where the magnitude is positive.
  at = p['b_mag'] - np.exp(p['r_mag']) * p['b_gate']
  assert min((at < -0.1).sum(), (at > 0.1).sum()) > 2

  folded = sae.fold(scale)
  assert type(folded) is released.SAE
  f_BM = folded.encode(jnp.asarray(raw, 'float32'))
  np.testing.assert_array_equal(f_BM > 0, h.f > 0)
  norm = reference.norms(p['W_dec'])
  np.testing.assert_allclose(
    f_BM, scale * norm * h.f, rtol=1e-5, atol=1e-5 * scale
  )
  got = folded(jnp.asarray(raw, 'float32'))
  np.testing.assert_allclose(got, scale * x_hat, rtol=1e-5, atol=1e-5 * scale)
  np.testing.assert_allclose(
    folded.threshold, scale * norm * np.maximum(at, 0), rtol=1e-5, atol=1e-6
  )
  np.testing.assert_allclose(
    np.linalg.norm(folded.W_dec, axis=1), np.ones(16), rtol=1e-5
  )


def test_latent_with_negative_threshold_fires_where_its_magnitude_is_positive():
  # One latent, z = x: gate open above -2, magnitude e^0 x + 1 positive above
  # -1. The magnitude decides; theta is max(1 - 2, 0) = 0.
  sae = gated.Gated(
    W_enc=jnp.ones((1, 1)),
    W_dec=jnp.ones((1, 1)),
    b_dec=jnp.zeros(1),
    b_gate=jnp.array([2.0]),
    r_mag=jnp.zeros(1),
    b_mag=jnp.array([1.0]),
    use_pre_encoder_bias=False,
    compute_dtype='float32',
  )
  x_BD = jnp.array([[-2.5], [-1.5], [-0.5], [1.0]])
  np.testing.assert_array_equal(sae.fold(1.0).threshold, [0.0])
  want = [[0.0], [0.0], [0.5], [2.0]]
  np.testing.assert_allclose(sae.fold(1.0).encode(x_BD), want)
  np.testing.assert_allclose(sae.forward(x_BD, None, 0.1).f, want)


def test_initial_gated_sae_is_a_relu_sae(make_run):
  config = dataclasses.replace(
    make_run().sae, num_latents=12, initial_decoder_norm=0.5
  )
  for init in (gated.init, gated.init_free_norm):
    sae = init(jax.random.key(0), (6,), config)
    f_BM = sae.forward(random_rows(), None, 0.1).f
    pre = np.asarray(random_rows()) @ np.asarray(sae.W_enc)
    np.testing.assert_allclose(f_BM, np.maximum(pre, 0), atol=1e-6)
  np.testing.assert_allclose(
    np.linalg.norm(sae.constrain().W_dec, axis=1), [0.5] * 12, rtol=1e-6
  )
