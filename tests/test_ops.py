"""The step and JumpReLU: values, pseudo-derivatives, dtypes."""

import math

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from jumprelu_jax import kernels
from jumprelu_jax import ops

OPS = {'step': ops.step, 'jumprelu': ops.jumprelu}


def normal_density(t):
  return math.exp(-t * t / 2) / math.sqrt(2 * math.pi)


def threshold_gradient(op, pre_BM, threshold_M, bandwidth, **kwargs):
  def mean(threshold_M):
    return jnp.mean(
      jnp.sum(op(pre_BM, threshold_M, bandwidth, **kwargs), axis=-1)
    )

  return jax.grad(mean)(threshold_M)


@pytest.mark.parametrize('threshold', [0.2, 0.5, 1.0])
def test_step_gradient_is_density_estimate(threshold):
  pre_BM = jnp.asarray(
    np.random.default_rng(0).standard_normal((1_000_000, 1)), 'float32'
  )
  got = threshold_gradient(ops.step, pre_BM, jnp.array([threshold]), 0.1)
  np.testing.assert_allclose(got, [-normal_density(threshold)], rtol=0.02)


@pytest.mark.parametrize('threshold', [0.2, 0.5, 1.0])
def test_jumprelu_gradient_is_threshold_times_density(threshold):
  pre_BM = jnp.asarray(
    np.random.default_rng(1).standard_normal((1_000_000, 1)), 'float32'
  )
  got = threshold_gradient(ops.jumprelu, pre_BM, jnp.array([threshold]), 0.1)
  expected = -threshold * normal_density(threshold)
  np.testing.assert_allclose(got, [expected], rtol=0.02)


def test_values_by_hand_are_zero_at_equality():
  pre_BM = jnp.array([[0.5, 0.5, 0.5, -2.0], [2.0, 0.0, 0.6, 0.3]])
  threshold_M = jnp.array([0.5, 0.4, 0.55, 0.1])
  np.testing.assert_array_equal(
    ops.step(pre_BM, threshold_M, 0.1), [[0, 1, 0, 0], [1, 0, 1, 1]]
  )
  np.testing.assert_allclose(
    ops.jumprelu(pre_BM, threshold_M, 0.1),
    [[0, 0.5, 0, 0], [2.0, 0, 0.6, 0.3]],
  )


def test_threshold_gradients_by_hand():
  # Window of width 0.2 around 0.5: 0.45 and 0.55 are inside, 0.7 and 0.3 not.
  pre_BM = jnp.array([[0.45], [0.55], [0.7], [0.3]])
  g_BM = jnp.array([[1.0], [2.0], [4.0], [8.0]])
  threshold_M = jnp.array([0.5])
  _, vjp = jax.vjp(lambda t: ops.step(pre_BM, t, 0.2), threshold_M)
  np.testing.assert_allclose(vjp(g_BM)[0], [-(1 + 2) / 0.2], rtol=1e-6)
  _, vjp = jax.vjp(lambda t: ops.jumprelu(pre_BM, t, 0.2), threshold_M)
  np.testing.assert_allclose(vjp(g_BM)[0], [-0.5 * (1 + 2) / 0.2], rtol=1e-6)


def test_pre_activation_gradients():
  pre_BM = jnp.array([[0.45, 0.55, 0.7, -1.0]])
  threshold_M = jnp.full(4, 0.5)
  for op, expected in ((ops.step, [0, 0, 0, 0]), (ops.jumprelu, [0, 1, 1, 0])):
    got = jax.grad(lambda p, op=op: jnp.sum(op(p, threshold_M, 0.2)))(pre_BM)
    np.testing.assert_array_equal(got, [expected])


@pytest.mark.parametrize('name', OPS)
def test_sample_outside_the_window_gives_zero(name):
  threshold_M = jnp.array([0.5, 0.5])
  pre_BM = jnp.array([[0.5 - 0.0501, 0.5 + 0.0501]])
  got = threshold_gradient(OPS[name], pre_BM, threshold_M, 0.1)
  np.testing.assert_array_equal(got, [0, 0])


def test_kernel_is_an_argument():
  def triangle(u):
    return jnp.maximum(0, 1 - jnp.abs(u))

  # At half a bandwidth from the threshold the triangle's density is 1/2.
  pre_BM = jnp.array([[0.55]])
  got = threshold_gradient(
    ops.step, pre_BM, jnp.array([0.5]), 0.1, kernel=triangle
  )
  np.testing.assert_allclose(got, [-0.5 / 0.1], rtol=1e-4)


@pytest.mark.parametrize('name', OPS)
def test_bandwidth_can_be_mapped_over(name):
  pre_BM = jnp.array([[0.45], [0.55], [0.9]])
  threshold_M = jnp.array([0.5])
  bandwidths = jnp.array([0.2, 2.0])

  def gradient(bandwidth):
    return threshold_gradient(OPS[name], pre_BM, threshold_M, bandwidth)

  got = jax.jit(jax.vmap(gradient))(bandwidths)
  factor = {'step': 1.0, 'jumprelu': 0.5}[name]
  expected = [[-factor * 2 / 3 / 0.2], [-factor * 3 / 3 / 2.0]]
  np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize('name', OPS)
def test_each_latent_can_have_its_own_window(name):
  # 0.45 and 0.58 around 0.5: one is in a window of 0.1, both are in one of 0.2.
  pre_BM = jnp.array([[0.45 + 1e-4] * 2, [0.58] * 2])
  threshold_M, bandwidth_M = jnp.array([0.5, 0.5]), jnp.array([0.1, 0.2])
  got = threshold_gradient(OPS[name], pre_BM, threshold_M, bandwidth_M)
  factor = {'step': 1.0, 'jumprelu': 0.5}[name]
  want = [-factor * 1 / 2 / 0.1, -factor * 2 / 2 / 0.2]
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_window_of_each_latent_has_no_gradient():
  pre_BM, threshold_M = jnp.array([[0.48, 0.52]]), jnp.array([0.5, 0.5])
  for op in OPS.values():
    got = jax.grad(lambda b, op=op: jnp.sum(op(pre_BM, threshold_M, b)))(
      jnp.array([0.1, 0.2])
    )
    np.testing.assert_array_equal(got, [0, 0])


def test_estimator_through_the_jump_reaches_pre_activations():
  # Window of width 0.2 around 0.5: 0.45 and 0.55 are inside.
  pre_BM = jnp.array([[0.45], [0.55], [0.7], [0.3]])
  g_BM = jnp.array([[1.0], [2.0], [4.0], [8.0]])
  threshold_M = jnp.array([0.5])
  through = ops.ESTIMATORS['threshold_and_encoder']
  plain = ops.ESTIMATORS['threshold']
  for op, plain_op, want in (
    (through.step, plain.step, [[1 / 0.2], [2 / 0.2], [0], [0]]),
    (
      through.jumprelu,
      plain.jumprelu,
      [[0.5 / 0.2], [2 + 2 * 0.5 / 0.2], [4], [0]],
    ),
  ):
    value_BM, vjp = jax.vjp(
      lambda p, t, op=op: op(p, t, 0.2), pre_BM, threshold_M
    )
    plain_BM, plain_vjp = jax.vjp(
      lambda p, t, op=plain_op: op(p, t, 0.2), pre_BM, threshold_M
    )
    np.testing.assert_array_equal(value_BM, plain_BM)
    d_pre_BM, d_threshold_M = vjp(g_BM)
    np.testing.assert_allclose(d_pre_BM, want, rtol=1e-6)
    np.testing.assert_array_equal(d_threshold_M, plain_vjp(g_BM)[1])


def test_default_jump_is_the_papers():
  assert ops.Jump() == ops.Jump(
    ops.Estimator(ops.step, ops.jumprelu), kernels.rectangle
  )


def test_window_is_evaluated_in_float32():
  # bfloat16 has no number between 1 and 1.0078: rounded to it, the threshold
  # 1.003 would be 1, and the samples at 1 inside its window of width 0.004.
  pre_BM = jnp.ones((8, 1), 'bfloat16')
  threshold_M = jnp.array([1.003])
  got = threshold_gradient(ops.step, pre_BM, threshold_M, 0.004)
  np.testing.assert_array_equal(got, [0])
  assert not ops.step(pre_BM, threshold_M, 0.004).any()
  assert ops.jumprelu(pre_BM, threshold_M, 0.004).dtype == 'bfloat16'


@pytest.mark.parametrize('name', OPS)
def test_mismatched_shapes_are_refused(name):
  with pytest.raises(ValueError, match='M=3, but M=4'):
    OPS[name](jnp.zeros((2, 4)), jnp.zeros(3), 0.1)


def test_bfloat16_matmul_accumulates_in_float32():
  a, b = jnp.ones((1, 1000)), jnp.full((1000, 1), 1.0)
  got = ops.matmul(a, b, 'bfloat16')
  assert got.dtype == 'float32'
  np.testing.assert_array_equal(got, [[1000.0]])  # bfloat16 would stop at 256
