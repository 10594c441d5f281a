"""The TopK family: selection, AuxK, Matryoshka, transcoders, folds."""

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

from jumprelu_jax import objectives
from jumprelu_jax import sharding
from jumprelu_jax.sae import jumprelu
from jumprelu_jax.sae import released
from jumprelu_jax.sae import topk

K = 4
LATENTS = {
  topk.TopK: reference.top_k,
  topk.BatchTopK: reference.batch_top_k,
}


def numbers(dead=(), aux_k=3, **kwargs):
  """Coefficients with some latents dead."""
  dead_M = np.zeros(16, bool)
  dead_M[list(dead)] = True
  weights = {'sparsity_coeff': 0.0, 'bandwidth': 0.1, 'aux_k_coeff': 0.5}
  return weights | {'dead_M': dead_M, 'aux_k': aux_k} | kwargs


def random_top_k(cls=topk.TopK, **kwargs):
  static = {} if cls is topk.BatchTopK else {'is_approximate': False}
  return random_of(cls, k=K, **static, **kwargs)


def wanted(name, cls, rows, c, *, uses_b_dec=True, prefixes=()):
  """The loss in NumPy as a function of parameters; rows as in `loss_of`."""
  pair = rows if isinstance(rows, tuple) else (rows, rows)
  x, y = (np.asarray(side, np.float64) for side in pair)

  def loss(p):
    h = LATENTS[cls](x, p, K, uses_b_dec=uses_b_dec)
    y_hats = reference.predictions(h, x, p)
    if prefixes:
      y_hats = reference.prefix_predictions(h, p, prefixes)
    return reference.objective(name, h, y, y_hats, p, c)

  return loss


def gradients_of_aux_k(sae, x_BD, c):
  def of(name):
    return loss_and_gradients_of(name, sae, x_BD, c)[1]

  return jax.tree.map(jnp.subtract, of('aux_k'), of('reconstruction'))


@pytest.mark.parametrize(
  ('dead', 'uses_b_dec'),
  [((), True), ((2,), False), ((1, 5, 6, 7, 11, 13), True)],
)
@pytest.mark.parametrize('cls', LATENTS)
def test_loss_and_gradients_equal_the_equations(cls, dead, uses_b_dec):
  # Of three latents that AuxK takes: none is dead, fewer are, and more.
  x_BD, c = random_rows(), numbers(dead)
  assert_loss_and_gradients_equal(
    wanted('aux_k', cls, x_BD, c, uses_b_dec=uses_b_dec),
    'aux_k',
    random_top_k(cls, use_pre_encoder_bias=uses_b_dec),
    x_BD,
    c,
  )


def test_aux_k_trains_dead_latents_alone():
  dead = [1, 5, 6, 7, 11, 13]
  sae = random_top_k(use_pre_encoder_bias=False)
  got = gradients_of_aux_k(sae, random_rows(), numbers(dead))
  alive = np.setdiff1d(np.arange(16), dead)
  for name, by_latent in (
    ('W_enc', got.W_enc.T),
    ('b_enc', got.b_enc[:, None]),
    ('W_dec', got.W_dec),
  ):
    size_M = np.abs(by_latent).max(axis=1)
    assert size_M[dead].max() > 1e-3, name
    np.testing.assert_allclose(size_M[alive], 0, atol=1e-6, err_msg=name)
  # Not its bias, which the residual has already had taken off.
  np.testing.assert_allclose(got.b_dec, np.zeros(6), atol=1e-6)


def test_aux_k_by_hand():
  # One row (3, 4), of which latent 0 explains (3, 0); the dead latent 1 has the
  # activation 2 along (0, 1). Left of (0, 4) is (0, 2): a share of 4 / 16.
  sae = topk.TopK(
    W_enc=jnp.array([[1.0, 0.0], [0.0, 0.5]]),
    b_enc=jnp.zeros(2),
    W_dec=jnp.eye(2),
    b_dec=jnp.zeros(2),
    k=1,
    is_approximate=False,
    use_pre_encoder_bias=False,
    compute_dtype='float32',
  )
  c = numbers() | {'dead_M': np.array([False, True]), 'aux_k': 1}
  loss, (metrics, _) = loss_of('aux_k', sae, jnp.array([[3.0, 4.0]]), c)
  np.testing.assert_allclose(metrics['squared_error'], 16.0)
  np.testing.assert_allclose(metrics['loss/aux_k'], 0.5 * 4 / 16, rtol=1e-6)
  np.testing.assert_allclose(loss, 16 + 0.125, rtol=1e-6)


def test_aux_k_is_zero_while_none_is_dead():
  sae, x_BD = random_top_k(), random_rows()
  _, (metrics, _) = loss_of('aux_k', sae, x_BD, numbers())
  assert metrics['loss/aux_k'] == 0
  for leaf in jax.tree.leaves(gradients_of_aux_k(sae, x_BD, numbers())):
    np.testing.assert_array_equal(leaf, np.zeros(leaf.shape))


def test_aux_k_is_zero_where_nothing_is_left():
  # Rows are the decoder's bias, and nothing fires: they are predicted exactly.
  sae = random_top_k().replace(b_enc=jnp.full(16, -1.0))
  x_BD = jnp.tile(sae.b_dec[None], (5, 1))
  c = numbers(dead=(0, 1, 2))
  loss, (metrics, _) = loss_of('aux_k', sae, x_BD, c)
  assert loss == metrics['loss/aux_k'] == 0
  for leaf in jax.tree.leaves(gradients_of_aux_k(sae, x_BD, c)):
    np.testing.assert_array_equal(leaf, np.zeros(leaf.shape))


def test_aux_k_joins_a_thresholded_sae():
  sae, x_BD = random_of(jumprelu.JumpReLU), random_rows()
  c = numbers(dead=(0, 3, 4, 9), sparsity_coeff=0.3)
  x = np.asarray(x_BD, np.float64)

  def loss(p):
    h = reference.jumprelu(x, p, 0.1)
    y_hats = reference.predictions(h, x, p)
    return reference.objective('l0+aux_k', h, x, y_hats, p, c)

  assert_loss_and_gradients_equal(loss, 'l0+aux_k', sae, x_BD, c)


@pytest.mark.parametrize('dead', [(), (1, 5, 6, 7, 11)])
def test_matryoshka_sums_the_errors_of_its_prefixes(dead):
  x_BD, prefixes = random_rows(), (3, 8, 16)
  c = numbers(dead)
  assert_loss_and_gradients_equal(
    wanted('aux_k', topk.BatchTopK, x_BD, c, prefixes=prefixes),
    'aux_k',
    random_top_k(topk.BatchTopK),
    x_BD,
    c | {'prefixes': prefixes},
    reconstruct=objectives.nested,
  )


@pytest.mark.parametrize('has_skip', [False, True])
def test_transcoder_predicts_its_target(has_skip):
  sae = random_top_k(widths=(6, 5), has_skip=has_skip)
  pair, c = (random_rows(), random_rows(5, seed=2)), numbers((1, 5, 6, 7))
  assert_loss_and_gradients_equal(
    wanted('aux_k', topk.TopK, pair, c, uses_b_dec=False),
    'aux_k',
    sae,
    pair,
    c,
  )


def test_k_largest_of_a_row_fire_if_they_are_positive():
  sae = random_top_k().replace(b_enc=jnp.full(16, -0.8))
  encoding = sae.forward(random_rows(), None, 0.1)
  num_positive = (np.asarray(encoding.pre) > 0).sum(1)
  assert num_positive.min() < K < num_positive.max()
  np.testing.assert_array_equal(
    encoding.active.sum(1), np.minimum(num_positive, K)
  )


def test_batch_gives_rows_different_numbers_of_latents():
  sae, x_BD = random_top_k(topk.BatchTopK), random_rows()
  encoding = sae.forward(x_BD, None, 0.1)
  l0_B = np.asarray(encoding.active).sum(1)
  assert l0_B.sum() == K * len(x_BD)
  assert l0_B.min() < K < l0_B.max()
  f = np.asarray(encoding.f)
  assert encoding.threshold == f[f > 0].min()


def test_batch_with_too_few_positive_lets_all_of_them_fire():
  sae = random_top_k(topk.BatchTopK).replace(b_enc=jnp.full(16, -1.5))
  encoding = sae.forward(random_rows(), None, 0.1)
  positive_BM = np.maximum(np.asarray(encoding.pre), 0)
  assert 0 < (positive_BM > 0).sum() < K * 80
  np.testing.assert_array_equal(encoding.f, positive_BM)
  np.testing.assert_array_equal(encoding.active, positive_BM > 0)


@pytest.mark.parametrize('cls', LATENTS)
def test_mesh_selects_what_one_device_does(cls):
  sae, x_BD = random_top_k(cls), random_rows()
  mesh = sharding.make_mesh(2, 4)

  def forward(sae, x_BD):
    encoding = sae.forward(x_BD, None, 0.1)
    return encoding.f, encoding.active, encoding.threshold

  want_BM, want_active_BM, want_cutoff = forward(sae, x_BD)
  shardings = (sharding.of_tree(mesh, sae), sharding.of_batch(mesh))
  placed = jax.device_put((sae, x_BD), shardings)
  got_BM, active_BM, cutoff = jax.jit(forward)(*placed)
  np.testing.assert_array_equal(active_BM, want_active_BM)
  np.testing.assert_allclose(got_BM, want_BM, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(cutoff, want_cutoff, rtol=1e-5)


@pytest.mark.parametrize('uses_b_dec', [True, False])
def test_folded_top_k_selects_the_same_on_raw_data(uses_b_dec):
  scale = 23.0
  sae = random_top_k(use_pre_encoder_bias=uses_b_dec).constrain()
  raw = scale * np.asarray(random_rows(), np.float64)
  p = float64_params(sae)
  h = reference.top_k(raw / scale, p, K, uses_b_dec=uses_b_dec)
  (x_hat,) = reference.predictions(h, raw, p)
  folded = sae.fold(scale)
  assert type(folded) is released.TopKSAE
  assert_same(folded, raw, scale * h.f, scale * x_hat)


@pytest.mark.parametrize('uses_b_dec', [True, False])
def test_folded_batch_top_k_has_one_threshold_for_all(uses_b_dec):
  scale, threshold = 23.0, 0.7
  sae = random_top_k(topk.BatchTopK, use_pre_encoder_bias=uses_b_dec)
  sae = sae.constrain()
  raw = scale * np.asarray(random_rows(), np.float64)
  p = float64_params(sae)
  pre = reference.encoded(raw / scale, p, uses_b_dec) + p['b_enc']
  f = pre * (pre > threshold)
  folded = sae.fold_at(jnp.float32(threshold), scale)
  assert type(folded) is released.SAE
  np.testing.assert_allclose(folded.threshold, [scale * threshold] * 16)
  assert_same(folded, raw, scale * f, scale * (f @ p['W_dec'] + p['b_dec']))


def test_batch_top_k_folded_at_its_cutoff_fires_as_in_training():
  # But for the pre-activation that is the cutoff: a jump is above it.
  sae, x_BD = random_top_k(topk.BatchTopK).constrain(), random_rows()
  encoding = sae.forward(x_BD, None, 0.1)
  just_below = encoding.threshold * (1 - 1e-6)
  f_BM = sae.fold_at(just_below, 1.0).encode(x_BD)
  np.testing.assert_array_equal(f_BM > 0, encoding.active > 0)
  np.testing.assert_allclose(f_BM, encoding.f, rtol=1e-5)


@pytest.mark.parametrize('has_skip', [False, True])
@pytest.mark.parametrize('cls', [jumprelu.JumpReLU, topk.TopK])
def test_folded_transcoder_takes_and_gives_raw_rows(cls, has_skip):
  scale, target_scale = 23.0, 0.4
  static = {'k': K, 'is_approximate': False} if cls is topk.TopK else {}
  sae = random_of(cls, widths=(6, 5), has_skip=has_skip, **static).constrain()
  raw = scale * np.asarray(random_rows(), np.float64)
  p, x = float64_params(sae), raw / scale
  if cls is topk.TopK:
    h = reference.top_k(x, p, K, uses_b_dec=False)
  else:
    h = reference.jumprelu(x, p, 0.1, uses_b_dec=False)
  (y_hat,) = reference.predictions(h, x, p)
  # Latents are in the target's units, so that decoder rows keep unit norm.
  folded = sae.fold(scale, target_scale)
  assert_same(folded, raw, target_scale * h.f.real, target_scale * y_hat.real)


@pytest.mark.parametrize('scale', [1.0, 23.0])
def test_free_norms_fold_to_unit_rows(scale):
  sae = random_of(jumprelu.FreeNormJumpReLU)
  sae = sae.replace(W_dec=sae.W_dec.at[3].set(0.0))
  raw = scale * np.asarray(random_rows(), np.float64)
  p = float64_params(sae)
  h = reference.jumprelu(raw / scale, p, 0.1)
  (x_hat,) = reference.predictions(h, raw, p)
  norm = reference.norms(p['W_dec'])
  norm[3] = 1  # a row of zeros stays, and so does its latent
  folded = sae.fold(scale)
  assert_same(folded, raw, scale * norm * h.f.real, scale * x_hat.real)
  want = np.where(np.arange(16) == 3, 0.0, 1.0)
  np.testing.assert_allclose(
    np.linalg.norm(folded.W_dec, axis=1), want, rtol=1e-5
  )


def assert_same(folded, raw, f, y_hat):
  """Asserts a released SAE's latents and predictions on raw rows."""
  x_BD = jnp.asarray(raw, 'float32')
  got_BM = folded.encode(x_BD)
  np.testing.assert_array_equal(got_BM > 0, f > 0)
  size = np.abs(f).max()
  np.testing.assert_allclose(got_BM, f, rtol=1e-5, atol=1e-6 * size)
  size = np.abs(y_hat).max()
  np.testing.assert_allclose(folded(x_BD), y_hat, rtol=1e-5, atol=1e-6 * size)
