"""What training minimises: one function for each loss of the literature.

An objective is `(sae, x_BD, coefficients, kernel) -> (loss, terms)`: a scalar
and a dict of scalars to log, float32, on activations of unit mean squared norm.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.struct
import jax
from jax import numpy as jnp

from jumprelu_jax import ops
from jumprelu_jax import sae as sae_lib


@flax.struct.dataclass
class Coefficients:
  """The numbers of an objective that may differ between runs of one program.

  Attributes:
    sparsity_coeff: lambda, weight of the sparsity term.
    bandwidth: epsilon, width of the straight-through estimator's kernel.
  """

  sparsity_coeff: jax.Array | float
  bandwidth: jax.Array | float


def l0(
  sae: sae_lib.JumpReLU,
  x_BD: jax.Array,
  coefficients: Coefficients,
  kernel: ops.Kernel = ops.rectangle,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Squared error plus lambda times L0 (arXiv:2407.14435, Eqs. 9 and 10).

  mean over B of ( sum over D of (x - x_hat)^2 + lambda * sum over M of
  H(pre - threshold) ). The L0 term trains the thresholds alone.

  Returns:
    The loss, and terms 'squared_error' (per row) and 'l0' (latents per row).

  Raises:
    ValueError: the shapes do not agree.
  """
  bandwidth = coefficients.bandwidth
  pre_BM = sae.pre_activations(x_BD)
  f_BM = ops.jumprelu(pre_BM, sae.threshold, bandwidth, kernel)
  error_BD = x_BD - sae.decode(f_BM)
  squared_error = jnp.mean(jnp.sum(error_BD**2, axis=-1))
  l0_BM = ops.step(pre_BM, sae.threshold, bandwidth, kernel)
  mean_l0 = jnp.mean(jnp.sum(l0_BM, axis=-1))
  loss = squared_error + coefficients.sparsity_coeff * mean_l0
  return loss, {'squared_error': squared_error, 'l0': mean_l0}


#: Objectives by the names that configs and results.csv use.
OBJECTIVES: dict[str, Callable] = {'l0': l0}
