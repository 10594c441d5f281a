"""Sparse products and steps equal the dense ones."""

import dataclasses
import functools

from helpers import random_saes
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from jumprelu_jax import architectures
from jumprelu_jax import components
from jumprelu_jax import kernels
from jumprelu_jax import objectives
from jumprelu_jax import ops
from jumprelu_jax import sparse

M = 64
#: Each architecture with all that trains it, and each objective by itself.
CASES = [
  (name, '+'.join(sorted(architecture.trained_by)))
  for name, architecture in architectures.ARCHITECTURES.items()
] + [
  (
    next(
      name
      for name, architecture in architectures.ARCHITECTURES.items()
      if objective in architecture.trained_by
    ),
    objective,
  )
  for objective in sorted(objectives.OBJECTIVES)
]


def random_mask(seed=0, rows=12, latents=96, share=0.1):
  return np.random.default_rng(seed).random((rows, latents)) < share


def found(mask_BM, capacity, pre_BM=None):
  pre_BM = mask_BM.astype('float32') if pre_BM is None else pre_BM
  return sparse.find(jnp.asarray(pre_BM), jnp.asarray(mask_BM), capacity)


@pytest.mark.parametrize('capacity', [4, 5, 20, 96])
@pytest.mark.parametrize('latents', [96, 100])
def test_support_is_the_mask(capacity, latents):
  mask_BM = random_mask(latents=latents)
  most = mask_BM.sum(axis=1).max()
  support = found(mask_BM, capacity)
  order_B = np.asarray(support.order_B)
  np.testing.assert_array_equal(np.sort(order_B), np.arange(len(mask_BM)))
  counts_B = mask_BM.sum(axis=1)[order_B]
  assert (np.diff(counts_B) <= 0).all()  # the fullest first
  np.testing.assert_array_equal(support.count_B, counts_B)
  assert bool(support.fits) == (most <= capacity)
  assert support.index_KB.shape == (min(capacity, latents), len(mask_BM))
  for row, index_K in zip(mask_BM[order_B], support.index_KB.T, strict=True):
    (want,) = np.nonzero(row)
    count = min(len(want), capacity)
    np.testing.assert_array_equal(index_K[:count], want[:count])


def test_arrays_in_slots_add_up_as_dense_ones():
  mask_BM = random_mask()
  a_BM, weight_BM = np.random.default_rng(1).normal(size=(2, *mask_BM.shape))
  support = found(mask_BM, 20)

  def slots(value_BM):
    ordered_BM = value_BM[np.asarray(support.order_B)]
    value_BK = np.take_along_axis(ordered_BM, np.asarray(support.index_KB).T, 1)
    return support.kept(jnp.asarray(value_BK.T, 'float32'))

  kept_BM = np.where(mask_BM, a_BM, 0)
  for got, want in (
    (support.per_row(slots(a_BM)), kept_BM.sum(1)),
    (support.per_latent(slots(a_BM)), kept_BM.sum(0)),
    # What is given to each latent comes back as a sum over its rows.
    (
      jax.grad(
        lambda v_M: jnp.sum(support.each(v_M) * slots(weight_BM * mask_BM))
      )(jnp.ones(96)),
      (weight_BM * mask_BM).sum(0),
    ),
  ):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def sae_of(name, make_run, capacity, dtype='float32'):
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
    **static | {'capacity': capacity, 'compute_dtype': dtype},
  )


COEFFICIENTS = {
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


def outcome(
  name, objective, sae, jump=None, observe=lambda encoding: (), scale=1.0
):
  """Loss, scalars, what is observed, and gradients of a step."""
  jump = jump or ops.Jump()
  architecture = architectures.ARCHITECTURES[name]
  x_BD = scale * random_saes.random_rows(count=10)
  y_BD = x_BD if architecture.num_sites == 1 else x_BD[:, :5] * 2
  evaluate_on = functools.partial(
    objectives.evaluate,
    architecture.reconstruct,
    objectives.penalties(objective),
    jump,
  )
  c = objectives.Coefficients(**COEFFICIENTS)

  @jax.jit  # one program; its loops would else be one each, every time
  def step(sae, x_BD, y_BD):
    return objectives.gradients(evaluate_on, observe, jump, sae, x_BD, y_BD, c)

  return step(sae, x_BD, y_BD)


@pytest.fixture(scope='module')
def dense(make_run):
  """A function from an architecture and its objective to the dense outcome."""
  return functools.cache(
    lambda name, objective, dtype: outcome(
      name, objective, sae_of(name, make_run, 0, dtype)
    )
  )


def assert_as_dense(
  name, objective, capacity, is_sparse, make_run, dense, dtype='float32'
):
  (want_loss, (want_terms, _)), want = dense(name, objective, dtype)
  (loss, (terms, _)), got = outcome(
    name, objective, sae_of(name, make_run, capacity, dtype)
  )
  assert terms['is_sparse'] == is_sparse
  np.testing.assert_allclose(loss, want_loss, rtol=1e-6)
  np.testing.assert_allclose(terms['l0'], want_terms['l0'])
  for param, expected in random_saes.float64_params(want).items():
    largest = np.abs(expected).max()
    np.testing.assert_allclose(
      getattr(got, param), expected, rtol=0, atol=1e-5 * largest, err_msg=param
    )


@pytest.mark.parametrize(('name', 'objective'), CASES, ids=map('/'.join, CASES))
def test_steps_equal_dense_ones(name, objective, make_run, dense):
  assert_as_dense(name, objective, M, True, make_run, dense)


@pytest.mark.parametrize(('name', 'objective'), CASES, ids=map('/'.join, CASES))
def test_steps_in_bfloat16_round_as_dense_ones(
  name, objective, make_run, dense
):
  """A rounding that one of them lacks is worth 2^-9 of a term, or 2e-3."""
  args = name, objective, M, True, make_run, dense
  assert_as_dense(*args, dtype='bfloat16')


def rounded(a):
  return np.asarray(a).astype('bfloat16').astype('float64')


def assert_sum(got, a, b):
  """Holds got to the product a b: float32 sums, whatever their order."""
  bound = a.shape[1] * 2.0**-24 * (abs(a) @ abs(b)) + 1e-30
  assert (abs(np.float64(got) - a @ b) <= bound).all()


@pytest.mark.exact
@pytest.mark.parametrize('layout', ['dense', 'sparse'])
def test_products_in_bfloat16_are_of_rounded_operands(layout, make_run):
  """Forward and backward, of both layouts, held to NumPy."""
  sae = sae_of('relu', make_run, M, 'bfloat16').replace(
    use_pre_encoder_bias=False
  )
  x_BD = random_saes.random_rows(count=40)
  pre_BM = sae.linear(x_BD)
  mask_BM = np.asarray(pre_BM > 0)
  rng = np.random.default_rng(3)
  g_BE, g_BM = rng.normal(size=x_BD.shape), rng.normal(size=mask_BM.shape)
  g_BE, g_BM = np.float32(g_BE), np.float32(g_BM * mask_BM)
  f_BM = np.where(mask_BM, pre_BM, 0)
  latents = sparse.Everywhere()
  if layout == 'sparse':
    latents = found(mask_BM, M, pre_BM)

  def laid(value_BM):
    """Puts an array into the layout."""
    if layout == 'dense':
      return jnp.asarray(value_BM)
    return latents.kept(value_BM[latents.order_B[None], latents.index_KB])

  @jax.jit
  def run(sae, f, g_BE, g):
    y_BE, decoded = jax.vjp(latents.decode, sae, f)
    _, encoded = jax.vjp(lambda sae: latents.linear(sae, x_BD), sae)
    return y_BE, decoded(g_BE), encoded(g)[0]

  f = laid(f_BM)
  y_BE, (of_decode, d_f), of_encode = run(sae, f, g_BE, laid(g_BM))
  x, W_dec, f_BM, g = map(rounded, (x_BD, sae.W_dec, f_BM, g_BE))
  assert_sum(y_BE, f_BM, W_dec)
  assert_sum(of_decode.W_dec, f_BM.T, g)
  assert_sum(of_encode.W_enc, x.T, rounded(g_BM))
  ones_B1 = np.ones((len(x), 1))
  assert_sum(of_encode.b_enc[:, None], np.float64(g_BM).T, ones_B1)
  d_f_BM = np.array(d_f)
  if layout == 'sparse':
    d_f_BM = np.zeros_like(mask_BM, 'float32')
    d_f_BM[latents.order_B[None], latents.index_KB] = d_f
  assert_sum(np.where(mask_BM, d_f_BM, g @ W_dec.T), g, W_dec.T)


def test_small_pre_activations_are_selected_too(make_run):
  # All are far below 1: what fires is decided by their order alone.
  saes = [sae_of('batch_topk', make_run, capacity) for capacity in (0, M)]
  (want, _), (got, _) = (
    outcome(
      'batch_topk',
      'reconstruction',
      sae.replace(b_enc=0.01 * sae.b_enc, b_dec=0.01 * sae.b_dec),
      scale=0.01,
    )
    for sae in saes
  )
  assert want[1][0]['l0'] == 3
  assert got[1][0]['l0'] == 3
  np.testing.assert_allclose(got[0], want[0], rtol=1e-6)


@pytest.mark.parametrize(
  ('name', 'objective'), CASES[: len(architectures.ARCHITECTURES)]
)
def test_steps_that_do_not_fit_are_dense(name, objective, make_run, dense):
  always_fits = 'topk' in name and 'batch' not in name
  assert_as_dense(name, objective, 1, always_fits, make_run, dense)


def test_blocks_of_rows_add_up(make_run, monkeypatch):
  monkeypatch.setattr(sparse, '_BLOCK_ROWS', 5)  # of 10
  _, want = outcome('jumprelu', 'l0', sae_of('jumprelu', make_run, 0))
  _, got = outcome('jumprelu', 'l0', sae_of('jumprelu', make_run, M))
  for param, expected in random_saes.float64_params(want).items():
    random_saes.assert_near(getattr(got, param), expected, param)


@pytest.mark.parametrize('kernel', kernels.KERNELS)
@pytest.mark.parametrize('estimator', ops.ESTIMATORS)
def test_whole_windows_are_in_the_support(kernel, estimator, make_run):
  """Thresholds learn from all that is near them, whatever the kernel."""
  jump = ops.Jump(ops.ESTIMATORS[estimator], kernels.KERNELS[kernel])
  want, got = (
    outcome('jumprelu', 'l0', sae_of('jumprelu', make_run, capacity), jump)[1]
    for capacity in (0, M)
  )
  for param, expected in random_saes.float64_params(want).items():
    random_saes.assert_near(getattr(got, param), expected, param)


@pytest.mark.parametrize('name', components.COMPONENTS)
def test_components_observe_the_same(name, make_run):
  component = components.COMPONENTS[name](make_run().objective)
  c = objectives.Coefficients(**COEFFICIENTS)
  architecture = 'batch_topk' if name == 'selection_threshold' else 'jumprelu'
  objective = 'aux_k' if name == 'selection_threshold' else 'l0'
  want, got = (
    outcome(
      architecture,
      objective,
      sae_of(architecture, make_run, capacity),
      observe=lambda encoding: component.observe(encoding, c),
    )[0][1][1]
    for capacity in (0, M)
  )
  for one, other in zip(
    jax.tree.leaves(got), jax.tree.leaves(want), strict=True
  ):
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_the_fallback_is_in_one_program(make_run):
  """Rows that fit and rows that do not, without compiling again."""
  sae = sae_of('relu', make_run, 40)
  step = jax.jit(lambda sae: outcome('relu', 'ri_l1', sae)[0][1][0])
  assert step(sae)['is_sparse'] == 1
  assert step(sae.replace(b_enc=sae.b_enc + 5))['is_sparse'] == 0
  assert step._cache_size() == 1
