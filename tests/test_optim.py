"""The optimizer: Adam by hand, projection, learning rates."""

import dataclasses

from helpers import random_jumprelu
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from jumprelu_jax import optim


def random_like(tree, seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), 'float32'), tree
  )


@pytest.mark.parametrize('beta1', [0.0, 0.9])
def test_adam_equals_its_equations(beta1):
  beta2, epsilon = 0.999, 1e-8
  tx = optim.adam(beta1, beta2, epsilon)
  state = tx.init(jnp.zeros(5))
  mean, square = np.zeros(5), np.zeros(5)
  rng = np.random.default_rng(0)
  for t in range(1, 6):
    g = rng.normal(size=5) * 10.0 ** -np.arange(5)
    update, state = tx.update(jnp.asarray(g, 'float32'), state)
    mean = beta1 * mean + (1 - beta1) * g
    square = beta2 * square + (1 - beta2) * g**2
    expected = (mean / (1 - beta1**t)) / (
      np.sqrt(square / (1 - beta2**t)) + epsilon
    )
    np.testing.assert_allclose(update, expected, rtol=1e-4)


def test_no_first_moment_is_stored_without_momentum():
  def floats_in_state(beta1):
    state = optim.adam(beta1, 0.999, 1e-8).init(jnp.zeros(1000))
    return sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim)

  assert (floats_in_state(0.0), floats_in_state(0.9)) == (1000, 2000)


def test_decoder_gradient_loses_its_part_along_the_rows():
  sae = random_jumprelu.make()
  grads = random_like(sae, 0)
  tx = optim.remove_gradient_along_decoder_rows()
  got, _ = tx.update(grads, tx.init(sae), sae)
  W, g = np.asarray(sae.W_dec, float), np.asarray(grads.W_dec, float)
  along = np.sum(np.asarray(got.W_dec) * W, axis=1)
  np.testing.assert_allclose(along, np.zeros(len(W)), atol=1e-5)
  # What is left is g less its projection on the unit row.
  expected = [
    row - w * (w @ row) / (w @ w) for row, w in zip(g, W, strict=True)
  ]
  np.testing.assert_allclose(got.W_dec, expected, atol=1e-5)
  np.testing.assert_array_equal(got.W_enc, grads.W_enc)


def test_learning_rate_warms_up_stays_and_decays():
  schedule = optim.learning_rate_schedule(
    2.0, warmup_steps=10, decay_steps=20, total_steps=100
  )
  # Cosine from a tenth: after half the warm-up, 0.1 + 0.9 / 2 of the peak.
  np.testing.assert_allclose(schedule(4), 2 * 0.55, rtol=1e-6)
  np.testing.assert_allclose(schedule(0), 0.24404, rtol=1e-4)
  for step in (9, 50, 80):
    np.testing.assert_allclose(schedule(step), 2.0, rtol=1e-6)
  np.testing.assert_allclose(schedule(90), 1.0, rtol=1e-6)
  np.testing.assert_allclose(schedule(95), 0.29289, rtol=1e-4)


def test_no_warmup_and_no_decay_is_constant():
  schedule = optim.learning_rate_schedule(
    3.0, warmup_steps=0, decay_steps=0, total_steps=10
  )
  np.testing.assert_allclose([schedule(s) for s in (0, 5, 9)], [3.0] * 3)


def test_thresholds_have_their_own_learning_rate(make_run):
  config = dataclasses.replace(
    make_run().optimizer,
    warmup_steps=0,
    decay_fraction=0.0,
  )
  sae = random_jumprelu.make()
  tx = optim.updates(config, total_steps=10)
  rates = optim.Rates(1e-3, 5e-2)
  gradients = random_like(sae, 0)
  updates, _ = tx.update(gradients, tx.init(sae), sae, rates=rates)
  # Adam's first step without momentum is the gradient's sign.
  size = jax.tree.map(lambda u: float(jnp.max(jnp.abs(u))), updates)
  np.testing.assert_allclose(size.W_enc, 1e-3, rtol=1e-3)
  np.testing.assert_allclose(size.log_threshold, 5e-2, rtol=1e-3)
