"""Metrics against a float64 reference that sees all rows at once."""

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from jumprelu_jax import evaluation
from jumprelu_jax.lm import huggingface
from jumprelu_jax.lm import loss as lm_loss
from jumprelu_jax.lm import sites
from jumprelu_jax.lm import transformer
from jumprelu_jax.sae import maps
from jumprelu_jax.sae import released

SITES = [sites.Site(name, i % 2) for i, name in enumerate(sites.SITES)]


@pytest.fixture(scope='module')
def model(tiny_lm):
  return huggingface.load(tiny_lm)


def heldout(sequences=13, length=12, seed=0):
  """Tokens with BOS at the start and padding here and there."""
  rng = np.random.default_rng(seed)
  tokens_NL = rng.integers(3, 40, (sequences, length)).astype(np.int32)
  tokens_NL[:, 0] = 2
  tokens_NL[rng.random(tokens_NL.shape) < 0.1] = 2
  tokens_NL[-1, 5:] = 0
  return tokens_NL


def random_sae(d_model, seed=0):
  rng = np.random.default_rng(seed)

  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), 'float32')

  return released.SAE(
    W_enc=normal(d_model, 20),
    b_enc=normal(20),
    W_dec=maps.unit_rows(normal(20, d_model)),
    b_dec=normal(d_model),
    threshold=jnp.asarray(rng.uniform(0.1, 2.0, 20), 'float32'),
  )


def site_dim(model, where):
  return model.architecture.site_dim(where.name)


def mean_loss(model, tokens_NL, hooks):
  """Mean loss over predictions that count, float64, all rows at once."""
  logits = np.asarray(transformer.logits(model, tokens_NL, hooks), np.float64)
  log_z = np.log(np.exp(logits[:, :-1]).sum(-1))
  targets = tokens_NL[:, 1:]
  picked = np.take_along_axis(logits[:, :-1], targets[..., None], -1)[..., 0]
  counts = (tokens_NL[:, :-1] > 2) & (targets > 2)
  return (log_z - picked)[counts].mean()


@pytest.mark.parametrize('where', SITES, ids=str)
def test_metrics_equal_the_reference(model, where):
  tokens_NL, sae = heldout(), random_sae(site_dim(model, where))
  baseline = evaluation.measure_baseline(model, tokens_NL, where, 4)
  got = evaluation.evaluate(sae, model, tokens_NL, where, 4, baseline)

  is_text_NL = tokens_NL > 2
  x = np.asarray(transformer.tap(model, tokens_NL, (where,))[0])[is_text_NL]
  x = x.astype(np.float64)
  weights = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(sae)]
  W_enc, b_enc, W_dec, b_dec, threshold = weights
  pre = x @ W_enc + b_enc
  f = pre * (pre > threshold)
  x_hat = f @ W_dec + b_dec
  frequency = (f > 0).mean(0)
  mean = x.mean(0)

  def with_rows(fn):
    def replace(x_BLD):
      rows = fn(np.asarray(x_BLD, np.float64))
      return jnp.where(is_text_NL[..., None], rows.astype('float32'), x_BLD)

    return mean_loss(model, tokens_NL, sites.splice(where, replace))

  def reconstruct(x):
    pre = x @ W_enc + b_enc
    return (pre * (pre > threshold)) @ W_dec + b_dec

  clean = mean_loss(model, tokens_NL, {})
  spliced = with_rows(reconstruct)
  ablated = with_rows(lambda x: np.broadcast_to(mean, x.shape))
  expected = {
    'l0': (f > 0).sum(-1).mean(),
    'fvu': ((x - x_hat) ** 2).sum() / ((x - mean) ** 2).sum(),
    'delta_lm_loss': spliced - clean,
    'loss_clean': clean,
    'loss_spliced': spliced,
    'loss_mean_ablated': ablated,
    'loss_recovered': (ablated - spliced) / (ablated - clean),
    'dead_fraction': (frequency == 0).mean(),
    'frac_over_1pct': (frequency > 0.01).mean(),
    'frac_over_10pct': (frequency > 0.1).mean(),
    'relative_reconstruction_bias': (x_hat**2).sum() / (x_hat * x).sum(),
  }
  assert got.keys() == expected.keys()
  for name, value in expected.items():
    tolerance = {'rtol': 1e-5}
    if name == 'delta_lm_loss':  # keeps the absolute error of two losses
      tolerance = {'atol': 2 * 1e-5 * clean}
    if name == 'loss_recovered':  # the same, over a small difference
      error = 2 * 1e-5 * clean * (1 + abs(value))
      tolerance = {'atol': error / abs(ablated - clean)}
    if name == 'relative_reconstruction_bias':  # a random SAE's terms cancel
      cancelled = abs(x_hat * x).sum() / abs((x_hat * x).sum())
      tolerance = {'rtol': 1e-5 * cancelled}
    np.testing.assert_allclose(got[name], value, err_msg=name, **tolerance)


def test_transcoder_metrics_equal_the_reference(model):
  source, target = sites.Site('attn_z', 0), sites.Site('mlp_out', 1)
  tokens_NL, rng = heldout(), np.random.default_rng(5)
  W_skip = rng.normal(size=(site_dim(model, source), 16)) / 8
  transcoder = random_sae(site_dim(model, source)).replace(
    W_dec=maps.unit_rows(jnp.asarray(rng.normal(size=(20, 16)), 'float32')),
    b_dec=jnp.asarray(rng.normal(size=16), 'float32'),
    W_skip=jnp.asarray(W_skip, 'float32'),
  )
  baseline = evaluation.measure_baseline(model, tokens_NL, target, 4)
  got = evaluation.evaluate(
    transcoder, model, tokens_NL, target, 4, baseline, source
  )

  is_text_NL = tokens_NL > 2
  x_NLD, y_NLE = (
    np.asarray(a, float)
    for a in transformer.tap(model, tokens_NL, (source, target))
  )
  p = {
    name: np.asarray(getattr(transcoder, name), float)
    for name in ('W_enc', 'b_enc', 'W_dec', 'b_dec', 'threshold')
  }
  pre = x_NLD @ p['W_enc'] + p['b_enc']
  f = pre * (pre > p['threshold'])
  y_hat_NLE = f @ p['W_dec'] + p['b_dec'] + x_NLD @ W_skip
  spliced_NLE = np.where(is_text_NL[..., None], y_hat_NLE, y_NLE)
  loss_spliced = mean_loss(
    model,
    tokens_NL,
    {target: lambda _: jnp.asarray(spliced_NLE, 'float32')},
  )
  y, y_hat = y_NLE[is_text_NL], y_hat_NLE[is_text_NL]
  fvu = ((y - y_hat) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
  np.testing.assert_allclose(got['loss_spliced'], loss_spliced, rtol=1e-5)
  np.testing.assert_allclose(got['fvu'], fvu, rtol=1e-5)
  l0 = (f[is_text_NL] > 0).sum(-1).mean()
  np.testing.assert_allclose(got['l0'], l0, rtol=1e-6)
  # What the model itself would have said is something else.
  clean = mean_loss(model, tokens_NL, {})
  assert abs(loss_spliced - clean) > 1e-3
  np.testing.assert_allclose(got['loss_clean'], clean, rtol=1e-5)


@pytest.mark.parametrize('where', SITES, ids=str)
def test_splicing_the_activations_themselves_changes_no_loss(model, where):
  tokens_BL = jnp.asarray(heldout())
  special = model.architecture.special_ids
  losses = []
  for logits_BLV in (
    transformer.logits(model, tokens_BL),
    evaluation.spliced_logits(model, tokens_BL, where, lambda x: x)[0],
  ):
    loss_BL, counts_BL = lm_loss.next_token_loss(logits_BLV, tokens_BL, special)
    losses.append(float(jnp.sum(loss_BL * counts_BL) / jnp.sum(counts_BL)))
  assert abs(losses[0] - losses[1]) < 1e-5


def test_batch_size_changes_no_metric(model):
  where, tokens_NL = sites.Site('resid_post', 0), heldout()
  sae = random_sae(16)
  results = []
  for rows in (1, 5, 13):
    baseline = evaluation.measure_baseline(model, tokens_NL, where, rows)
    results.append(
      evaluation.evaluate(sae, model, tokens_NL, where, rows, baseline)
    )
  for result in results[1:]:
    for name, value in result.items():
      np.testing.assert_allclose(value, results[0][name], rtol=1e-4, atol=1e-5)


def test_predicting_the_mean_has_fvu_one_and_recovers_nothing(model):
  where, tokens_NL = sites.Site('resid_post', 0), heldout()
  baseline = evaluation.measure_baseline(model, tokens_NL, where, 4)
  silent = random_sae(16).replace(
    threshold=jnp.full(20, 1e6), b_dec=jnp.asarray(baseline.mean_D, 'float32')
  )
  got = evaluation.evaluate(silent, model, tokens_NL, where, 4, baseline)
  np.testing.assert_allclose(got['fvu'], 1, rtol=1e-5)
  np.testing.assert_allclose(got['loss_recovered'], 0, atol=1e-4)
  assert (got['l0'], got['dead_fraction']) == (0, 1)


def test_special_positions_keep_their_activations(model):
  where = sites.Site('resid_post', 1)
  tokens_BL = jnp.asarray(heldout())
  spliced_BLV, _, _ = evaluation.spliced_logits(
    model, tokens_BL, where, jnp.zeros_like
  )
  clean_BLV = transformer.logits(model, tokens_BL)
  is_bos_BL = np.asarray(tokens_BL) == 2
  changed_BL = np.abs(spliced_BLV - clean_BLV).max(-1) > 1e-4
  # After the last block a position's logits depend on that position alone.
  np.testing.assert_array_equal(changed_BL, np.asarray(tokens_BL) > 2)
  assert is_bos_BL.any()
