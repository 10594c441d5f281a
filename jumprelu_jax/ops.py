"""JumpReLU and the Heaviside step with the paper's pseudo-derivatives.

Rajamanoharan et al. 2024 (arXiv:2407.14435), section 3. Both functions are
piecewise constant in the threshold, so their true derivative there is zero
almost everywhere; a straight-through estimator replaces it by a kernel density
estimate around the jump. Gates, windows and thresholds are evaluated in float32
whatever the compute dtype is: near a jump, bfloat16 is coarser than the window.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools

import flax.struct
import jax
from jax import numpy as jnp

from jumprelu_jax import kernels
from jumprelu_jax import products
from jumprelu_jax import shapes


def step(
  pre_BM: jax.Array,
  threshold_M: jax.Array,
  bandwidth: jax.Array | float,
  kernel: kernels.Kernel = kernels.rectangle,
) -> jax.Array:
  """Heaviside step of pre-activations over thresholds.

  arXiv:2407.14435, Eq. 12, with K the kernel and eps the bandwidth:
    forward   H(pre - threshold), 0 at equality
    backward  d/dthreshold := -K((pre - threshold) / eps) / eps;  d/dpre := 0

  Args:
    pre_BM: encoder pre-activations. Not the activations after the jump: these
      are 0 below the threshold, so half of the window would be lost.
    threshold_M: positive thresholds, float32, in the units of pre_BM; or one
      for each pre-activation, of the same shape.
    bandwidth: width of the kernel, > 0, same units, one, [M], or of pre_BM's
      shape; may be traced.
    kernel: unit-mass kernel.

  Returns:
    0/1 array [B, M], float32; the sum of a row is its L0.

  Raises:
    ValueError: the shapes do not agree.
  """
  return _step(kernel, pre_BM, *_spread(pre_BM, threshold_M, bandwidth))


def jumprelu(
  pre_BM: jax.Array,
  threshold_M: jax.Array,
  bandwidth: jax.Array | float,
  kernel: kernels.Kernel = kernels.rectangle,
) -> jax.Array:
  """JumpReLU: the pre-activation where it exceeds its threshold, else 0.

  arXiv:2407.14435, Eqs. 4 and 11, with K the kernel and eps the bandwidth:
    forward   pre * H(pre - threshold)
    backward  d/dthreshold := -(threshold / eps) * K((pre - threshold) / eps)
              d/dpre = H(pre - threshold), the true derivative

  Args: as `step`.

  Returns:
    Activations [B, M] of pre_BM's dtype.

  Raises:
    ValueError: the shapes do not agree.
  """
  return _jumprelu(kernel, pre_BM, *_spread(pre_BM, threshold_M, bandwidth))


def is_active(pre_BM: jax.Array, threshold_M: jax.Array) -> jax.Array:
  """True where pre exceeds its threshold, compared in float32."""
  return _exceeds(pre_BM, threshold_M[None])


def _spread(pre_BM, threshold_M, bandwidth):
  """Returns thresholds and bandwidths as [1, M], or as pre-activations."""
  if threshold_M.ndim == 1:
    shapes.check(pre_BM=pre_BM, threshold_M=threshold_M)
    threshold_M = threshold_M[None]
  bandwidth = jnp.asarray(bandwidth, 'float32')
  if bandwidth.ndim < 2:  # one, or of each latent
    bandwidth = jnp.reshape(bandwidth, (1, -1))
  return threshold_M, bandwidth


# Below, thresholds are [1, M], or of each pre-activation, and bandwidths too,
# or [1, 1]. The bandwidth is an ordinary argument with a zero cotangent: as a
# non-differentiable one it could be neither traced nor vmapped over.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _step(kernel, pre_BM, threshold, bandwidth):
  del kernel, bandwidth
  return _exceeds(pre_BM, threshold).astype('float32')


def _step_fwd(kernel, pre_BM, threshold, bandwidth):
  out_BM = _step(kernel, pre_BM, threshold, bandwidth)
  return out_BM, (pre_BM, threshold, bandwidth)


def _step_bwd(kernel, residuals, g_BM):
  pre_BM, threshold, bandwidth = residuals
  density_BM = _density(kernel, pre_BM, threshold, bandwidth)
  d_threshold = -_summed(g_BM.astype('float32') * density_BM, threshold)
  return jnp.zeros_like(pre_BM), d_threshold, jnp.zeros_like(bandwidth)


_step.defvjp(_step_fwd, _step_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _jumprelu(kernel, pre_BM, threshold, bandwidth):
  del kernel, bandwidth
  return jnp.where(_exceeds(pre_BM, threshold), pre_BM, 0)


def _jumprelu_fwd(kernel, pre_BM, threshold, bandwidth):
  out_BM = _jumprelu(kernel, pre_BM, threshold, bandwidth)
  return out_BM, (pre_BM, threshold, bandwidth)


def _jumprelu_bwd(kernel, residuals, g_BM):
  pre_BM, threshold, bandwidth = residuals
  d_pre_BM = jnp.where(_exceeds(pre_BM, threshold), g_BM, 0)
  density_BM = _density(kernel, pre_BM, threshold, bandwidth)
  d_threshold = _summed(g_BM.astype('float32') * density_BM, threshold)
  d_threshold *= -threshold.astype('float32')
  return (
    d_pre_BM.astype(pre_BM.dtype),
    d_threshold.astype(threshold.dtype),
    jnp.zeros_like(bandwidth),
  )


_jumprelu.defvjp(_jumprelu_fwd, _jumprelu_bwd)


def step_through(
  pre_BM: jax.Array,
  threshold_M: jax.Array,
  bandwidth: jax.Array | float,
  kernel: kernels.Kernel = kernels.rectangle,
) -> jax.Array:
  """`step` whose estimator reaches the pre-activations too.

  The step depends on pre - threshold alone, so d/dpre := -d/dthreshold. Differs
  from the paper, which trains thresholds alone by it and reports that this is
  worse; Anthropic's recipe of January 2025 has it. Arguments as `step`.
  """
  return _step_through(kernel, pre_BM, *_spread(pre_BM, threshold_M, bandwidth))


def jumprelu_through(
  pre_BM: jax.Array,
  threshold_M: jax.Array,
  bandwidth: jax.Array | float,
  kernel: kernels.Kernel = kernels.rectangle,
) -> jax.Array:
  """`jumprelu` whose estimator reaches the pre-activations too.

  d/dpre := H(pre - threshold) + (threshold / eps) K((pre - threshold) / eps);
  see `step_through`. Arguments as `step`.
  """
  at = _spread(pre_BM, threshold_M, bandwidth)
  return _jumprelu_through(kernel, pre_BM, *at)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _step_through(kernel, pre_BM, threshold_M, bandwidth):
  return _step(kernel, pre_BM, threshold_M, bandwidth)


def _step_through_bwd(kernel, residuals, g_BM):
  _, d_threshold_M, d_bandwidth = _step_bwd(kernel, residuals, g_BM)
  d_pre_BM = g_BM.astype('float32') * _density(kernel, *residuals)
  return d_pre_BM.astype(residuals[0].dtype), d_threshold_M, d_bandwidth


_step_through.defvjp(_step_fwd, _step_through_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _jumprelu_through(kernel, pre_BM, threshold_M, bandwidth):
  return _jumprelu(kernel, pre_BM, threshold_M, bandwidth)


def _jumprelu_through_bwd(kernel, residuals, g_BM):
  d_pre_BM, d_threshold_M, d_bandwidth = _jumprelu_bwd(kernel, residuals, g_BM)
  jump_BM = residuals[1].astype('float32') * _density(kernel, *residuals)
  d_pre_BM = d_pre_BM + (g_BM.astype('float32') * jump_BM).astype(
    d_pre_BM.dtype
  )
  return d_pre_BM, d_threshold_M, d_bandwidth


_jumprelu_through.defvjp(_jumprelu_fwd, _jumprelu_through_bwd)


@dataclasses.dataclass(frozen=True)
class Estimator:
  """A straight-through estimator: the two functions that jump.

  Attributes:
    step: `step` or a relative of it.
    jumprelu: `jumprelu` or a relative of it.
  """

  step: Callable[..., jax.Array]
  jumprelu: Callable[..., jax.Array]


#: Estimators by what they train.
ESTIMATORS = {
  'threshold': Estimator(step, jumprelu),
  'threshold_and_encoder': Estimator(step_through, jumprelu_through),
}


@flax.struct.dataclass
class Jump:
  """Estimator and kernel with which a run's jumps are differentiated.

  Attributes:
    estimator: static; a value of `ESTIMATORS`.
    kernel: static; a value of `kernels.KERNELS`.
  """

  estimator: Estimator = flax.struct.field(
    pytree_node=False, default=ESTIMATORS['threshold']
  )
  kernel: kernels.Kernel = flax.struct.field(
    pytree_node=False, default=kernels.rectangle
  )


def _exceeds(pre_BM, threshold):
  return pre_BM.astype('float32') > threshold.astype('float32')


def _density(kernel, pre_BM, threshold, bandwidth):
  """K((pre - threshold) / bandwidth) / bandwidth, in float32."""
  distance_BM = pre_BM.astype('float32') - threshold.astype('float32')
  return kernel(distance_BM / bandwidth) / bandwidth


def _summed(value_BM, threshold):
  """Returns the sum over rows, unless each row has thresholds of its own."""
  if value_BM.shape == threshold.shape:
    return value_BM
  return jnp.sum(value_BM, axis=0, keepdims=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(a: jax.Array, b: jax.Array, compute_dtype: str) -> jax.Array:
  """A @ b with inputs in the compute dtype and float32 accumulation.

  Gradients are products of the same kind, so that they are float32 before they
  are added up over a mesh; by JAX's own rule they would be rounded to the
  compute dtype first.

  Args:
    a: [B, D].
    b: [D, M].
    compute_dtype: of the inputs of the product.

  Returns:
    [B, M], float32.
  """
  return _product(a, b, compute_dtype)


def _matmul_fwd(a, b, compute_dtype):
  return _product(a, b, compute_dtype), (a, b)


def _matmul_bwd(compute_dtype, residuals, g):
  a, b = residuals
  d_a = _product(g, b.T, compute_dtype)
  d_b = _product(a.T, g, compute_dtype)
  return d_a.astype(a.dtype), d_b.astype(b.dtype)


matmul.defvjp(_matmul_fwd, _matmul_bwd)


def _product(a, b, compute_dtype):
  return products.matmul(
    a.astype(compute_dtype),
    b.astype(compute_dtype),
    preferred_element_type='float32',
  )
