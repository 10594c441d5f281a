"""Sparse products and steps equal the dense ones."""

import dataclasses

import jax
from jax import numpy as jnp
import numpy as np
import pytest
import random_saes

from jumprelu_jax import architectures
from jumprelu_jax import kernels
from jumprelu_jax import ops
from jumprelu_jax import sparse

M = 64
CASES = [
  (name, objective)
  for name, architecture in architectures.ARCHITECTURES.items()
  for objective in sorted(architecture.trained_by)
]


def random_mask(seed=0, rows=12, latents=96, share=0.1):
  return np.random.default_rng(seed).random((rows, latents)) < share


@pytest.mark.parametrize('capacity', [4, 5, 20, 96])
@pytest.mark.parametrize('latents', [96, 100])
def test_support_is_the_mask(capacity, latents):
  mask_BM = random_mask(latents=latents)
  most = mask_BM.sum(axis=1).max()
  support = sparse.find(jnp.asarray(mask_BM), capacity)
  np.testing.assert_array_equal(support.count_B, mask_BM.sum(axis=1))
  assert int(support.most) == most
  assert bool(support.fits) == (most <= capacity)
  for row, index_K in zip(mask_BM, support.index_KB.T, strict=True):
    (want,) = np.nonzero(row)
    count = min(len(want), capacity)
    np.testing.assert_array_equal(index_K[:count], want[:count])


def test_values_spread_back_to_their_places():
  mask_BM = random_mask()
  a_BM = np.random.default_rng(1).normal(size=mask_BM.shape).astype('float32')
  support = sparse.find(jnp.asarray(mask_BM), 20)
  back_BM = support.spread(support.values(a_BM), a_BM.shape[1])
  np.testing.assert_array_equal(back_BM, np.where(mask_BM, a_BM, 0))


def sae_of(name, make_run, capacity):
  """An SAE of an architecture, every parameter random."""
  architecture = architectures.ARCHITECTURES[name]
  widths = (6,) if architecture.num_sites == 1 else (6, 5)
  run = make_run(sae__architecture=name, sae__num_latents=M, sae__k=3)
  first = architecture.init(jax.random.key(0), widths, run.sae)
  static = {
    field.name: getattr(first, field.name)
    for field in dataclasses.fields(first)
    if not field.metadata.get('pytree_node', True) and field.name != 'kind'
  }
  return random_saes.random_of(
    type(first),
    num_latents=M,
    widths=widths,
    has_skip=first.W_skip is not None,
    **static | {'capacity': capacity},
  )


@pytest.mark.parametrize('capacity', [M, 1], ids=['fits', 'falls back'])
@pytest.mark.parametrize(('name', 'objective'), CASES, ids=map('/'.join, CASES))
def test_steps_equal_dense_ones(name, objective, capacity, make_run):
  architecture = architectures.ARCHITECTURES[name]
  x_BD = random_saes.random_rows(count=10)
  y_BD = x_BD if architecture.num_sites == 1 else x_BD[:, :5] * 2
  coefficients = {
    'sparsity_coeff': 0.3,
    'bandwidth': 0.2,
    'target_l0': 2.0,
    'tanh_scale': 2.0,
    'pre_activation_coeff': 0.1,
    'aux_k_coeff': 0.5,
    'aux_k': 7,
    'dead_M': jnp.arange(M) % 3 == 0,
    'prefixes': (16, M),
  }

  def outcome(capacity):
    return random_saes.loss_and_gradients_of(
      objective,
      sae_of(name, make_run, capacity),
      (x_BD, y_BD),
      coefficients,
      reconstruct=architecture.reconstruct,
    )

  (want_loss, (want_terms, _)), want = outcome(0)
  (loss, (terms, _)), got = outcome(capacity)
  np.testing.assert_allclose(loss, want_loss, rtol=1e-6)
  np.testing.assert_allclose(terms['l0'], want_terms['l0'])
  for param, expected in random_saes.float64_params(want).items():
    largest = np.abs(expected).max()
    np.testing.assert_allclose(
      getattr(got, param), expected, rtol=0, atol=1e-5 * largest, err_msg=param
    )


@pytest.mark.parametrize('kernel', kernels.KERNELS)
@pytest.mark.parametrize('estimator', ops.ESTIMATORS)
def test_whole_windows_are_in_the_support(kernel, estimator, make_run):
  """Thresholds learn from all that is near them, whatever the kernel."""
  jump = ops.Jump(ops.ESTIMATORS[estimator], kernels.KERNELS[kernel])
  x_BD = random_saes.random_rows(count=10)
  gradients = [
    random_saes.loss_and_gradients_of(
      'l0',
      sae_of('jumprelu', make_run, capacity),
      x_BD,
      {'sparsity_coeff': 0.3, 'bandwidth': 0.1},
      jump=jump,
    )[1]
    for capacity in (0, M)
  ]
  want, got = (random_saes.float64_params(g) for g in gradients)
  for param, expected in want.items():
    random_saes.assert_near(got[param], expected, param)


def test_the_fallback_is_in_one_program(make_run):
  """Rows that fit and rows that do not, without compiling again."""
  sae = sae_of('relu', make_run, 40)

  @jax.jit
  def fits(sae, x_BD):
    return sae.forward(x_BD, ops.Jump(), 0.1).support.fits

  x_BD = random_saes.random_rows(count=10)
  assert bool(fits(sae, x_BD)) is True
  assert bool(fits(sae.replace(b_enc=sae.b_enc + 5), x_BD)) is False
  assert fits._cache_size() == 1
