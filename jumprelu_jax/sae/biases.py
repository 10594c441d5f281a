"""Initial biases from data."""

from __future__ import annotations

import jax
from jax import numpy as jnp
import numpy as np

from jumprelu_jax import config as config_lib
from jumprelu_jax import products
from jumprelu_jax.sae import trained


def are_wanted(config: config_lib.SAEConfig) -> bool:
  """Returns whether a config asks for biases from data."""
  return config.initial_b_dec != 'zeros' or config.initial_frequency > 0


def from_data(
  sae: trained.Trained,
  x_ND: np.ndarray,
  y_ND: np.ndarray,
  config: config_lib.SAEConfig,
) -> trained.Trained:
  """Returns an initial SAE with biases made from rows.

  b_dec is their mean or geometric median (arXiv:2406.04093, A.1). b_enc lets
  each latent fire on a share of them, `initial_frequency` (Anthropic, January
  2025): it is the threshold less that quantile of the latent's products.

  Args:
    sae: initial parameters, with b_enc of zeros.
    x_ND: input rows of unit mean squared norm.
    y_ND: their targets; x_ND itself but for transcoders.
    config: which biases.
  """
  if config.initial_b_dec == 'mean':
    sae = sae.replace(b_dec=jnp.mean(y_ND, axis=0))
  if config.initial_b_dec == 'geometric_median':
    sae = sae.replace(b_dec=geometric_median(jnp.asarray(y_ND)))
  if not config.initial_frequency:
    return sae
  pre_NM = sae.linear(jnp.asarray(x_ND))
  quantile_M = jnp.quantile(pre_NM, 1 - config.initial_frequency, axis=0)
  return sae.replace(b_enc=getattr(sae, 'threshold', 0.0) - quantile_M)


@jax.jit
def geometric_median(x_ND: jax.Array) -> jax.Array:
  """Returns the point [D] of least mean distance to the rows (Weiszfeld)."""

  def closer(_, median_D):
    distance_N = jnp.linalg.norm(x_ND - median_D[None], axis=1)
    weight_N = 1 / jnp.maximum(distance_N, 1e-6)
    return products.matmul(weight_N, x_ND) / jnp.sum(weight_N)

  return jax.lax.fori_loop(0, 50, closer, jnp.mean(x_ND, axis=0))
