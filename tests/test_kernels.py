"""Kernels: densities of unit mass and known widths."""

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from jumprelu_jax import kernels
from jumprelu_jax import ops

# Standard deviations at bandwidth 1: of a uniform density on (-1/2, 1/2), of a
# triangular one on (-1, 1), of Beta(2, 2) and Beta(3, 3) stretched to (-1, 1).
DEVIATIONS = {
  'rectangle': 12**-0.5,
  'triangle': 6**-0.5,
  'epanechnikov': 5**-0.5,
  'biweight': 7**-0.5,
  'gaussian': 1.0,
}


def moments(kernel):
  u = np.linspace(-12, 12, 2_400_001)
  density = np.asarray(kernel(jnp.asarray(u, 'float32')), np.float64)
  width = u[1] - u[0]
  return [float(np.sum(density * u**power) * width) for power in (0, 1, 2)]


@pytest.mark.parametrize('name', kernels.KERNELS)
def test_kernel_has_unit_mass_and_is_centred(name):
  mass, mean, _ = moments(kernels.KERNELS[name])
  np.testing.assert_allclose(mass, 1, atol=1e-4)
  np.testing.assert_allclose(mean, 0, atol=1e-6)


@pytest.mark.parametrize('edge', [-1, 1])
def test_rectangle_is_open(edge):
  u = jnp.float32([0.4999, 0.5, 0.5001])
  np.testing.assert_array_equal(kernels.rectangle(edge * u), [1, 0, 0])


@pytest.mark.parametrize('name', DEVIATIONS)
def test_kernel_has_its_width(name):
  _, _, variance = moments(kernels.KERNELS[name])
  np.testing.assert_allclose(variance**0.5, DEVIATIONS[name], rtol=1e-4)


@pytest.mark.parametrize('name', [n for n in DEVIATIONS if n != 'rectangle'])
def test_matched_kernel_is_as_wide_as_the_rectangle(name):
  _, _, variance = moments(kernels.KERNELS[f'{name}_matched'])
  np.testing.assert_allclose(variance**0.5, 12**-0.5, rtol=1e-4)


@pytest.mark.parametrize('name', kernels.KERNELS)
def test_gradient_is_density_estimate_with_any_kernel(name):
  rng = np.random.default_rng(0)
  pre_BM = jnp.asarray(rng.standard_normal((1_000_000, 1)), 'float32')

  def mean_l0(threshold_M):
    kernel = kernels.KERNELS[name]
    return jnp.mean(ops.step(pre_BM, threshold_M, 0.05, kernel))

  got = jax.grad(mean_l0)(jnp.array([0.5]))
  density = np.exp(-(0.5**2) / 2) / np.sqrt(2 * np.pi)
  np.testing.assert_allclose(got, [-density], rtol=0.02)
