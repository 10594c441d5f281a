"""Evaluation of SAEs in a small model: against float64, and what must hold."""

import dataclasses
import functools
import math
import re

import flax.struct
from helpers import metrics_reference
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from jumprelu_jax import errors
from jumprelu_jax import evaluation
from jumprelu_jax import metrics
from jumprelu_jax import sharding
from jumprelu_jax import splicing
from jumprelu_jax.lm import huggingface
from jumprelu_jax.lm import sites
from jumprelu_jax.lm import transformer
from jumprelu_jax.sae import maps
from jumprelu_jax.sae import released

# That every place in a block is read and replaced rightly is for
# test_families; here each is a program to compile.
SITES = [sites.parse(text) for text in ('attn_z/1', 'mlp_in/0', 'resid_post/1')]
RESID = sites.Site('resid_post', 0)
# Of a transcoder: site that is read, site that is predicted.
PAIRS = [
  (sites.Site('mlp_in', 1), sites.Site('mlp_out', 1)),
  (sites.Site('attn_z', 0), sites.Site('resid_post', 0)),
  (sites.Site('resid_pre', 0), sites.Site('attn_z', 1)),
]


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


def random_sae(d_in, d_out=None, seed=0):
  d_out = d_out or d_in
  rng = np.random.default_rng(seed)

  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), 'float32')

  return released.SAE(
    W_enc=normal(d_in, 20),
    b_enc=normal(20),
    W_dec=maps.unit_rows(normal(20, d_out)),
    b_dec=normal(d_out),
    threshold=jnp.asarray(rng.uniform(0.1, 2.0, 20), 'float32'),
    W_skip=None if d_in == d_out else normal(d_in, d_out),
  )


def make_setting(model, where=RESID, rows=4, **values):
  return evaluation.Setting(model, heldout(), where, rows, **values)


def evaluate(sae, setting):
  baseline = evaluation.measure_baseline(setting)
  return evaluation.evaluate(sae, setting, baseline)


def reference(sae, setting):
  """The metrics, with the SAE in float64 and the text in one batch."""
  model, tokens, where = setting.model, setting.tokens_NL, setting.where
  is_text = tokens > 2
  predicts = np.zeros_like(is_text)
  predicts[:, :-1] = is_text[:, :-1] & is_text[:, 1:]
  for site, largest in setting.limits:
    (found,) = tap(model, tokens, (site,))
    within = np.linalg.norm(np.float64(found), axis=-1) <= largest
    assert 0.1 < np.mean(within[is_text]) < 0.9
    is_text, predicts = is_text & within, predicts & within
  is_attributed = predicts.copy()
  is_attributed[setting.importance_sequences :] = False
  read = setting.source or where
  x, y = (np.float64(a) for a in tap(model, tokens, (read, where)))
  p = {k: np.float64(v) for k, v in vars(sae).items() if v is not None}
  pre = x @ p['W_enc'] + p['b_enc']
  f = pre * (pre > p['threshold'])
  y_hat = (
    f @ p['W_dec'] + p['b_dec'] + (x @ p['W_skip'] if 'W_skip' in p else 0)
  )

  def logits_with(value, at_special=setting.splice_special):
    value_BLD = np.broadcast_to(value, y.shape).astype('float32')
    return logits(model, tokens, where, value_BLD, is_text | at_special)

  data = {
    'y': y,
    'y_hat': y_hat,
    'f': f,
    'gradient': gradient(model, tokens, where, predicts),
    'clean': logits_with(y),
    'spliced': logits_with(y_hat),
    'mean_ablated': logits_with(y[is_text].mean(0)),
    'zero_ablated': logits_with(0.0),
    'zero_everywhere': logits_with(0.0, at_special=True),
    'target': np.roll(tokens, -1, axis=1),
    'is_text': is_text,
    'predicts': predicts,
    'has_next': np.indices(tokens.shape)[1] < tokens.shape[1] - 1,
    'is_attributed': is_attributed,
  }
  rows = {k: np.reshape(a, (-1, *np.shape(a)[2:])) for k, a in data.items()}
  return metrics_reference.metrics(rows, p['W_dec'])


tap = jax.jit(transformer.tap, static_argnums=2)
run_with = jax.jit(splicing.run_with, static_argnums=3)


@functools.partial(jax.jit, static_argnums=2)
def logits(model, tokens, where, value_BLD, is_replaced_BL):
  hooks = sites.splice(where, lambda _: value_BLD, is_replaced_BL)
  return transformer.logits(model, tokens, hooks)


@functools.partial(jax.jit, static_argnums=2)
def gradient(model, tokens, where, predicts):
  """Of a sequence's centred logits by its activations, in forward mode."""
  dim = model.architecture.site_dim(where.name)

  def total(added_LD):
    hooks = {where: lambda x_BLD: x_BLD + added_LD[None]}
    logits = transformer.logits(model, tokens, hooks)
    logits -= logits.mean(-1, keepdims=True)
    of_next = jnp.take_along_axis(
      logits, jnp.roll(tokens, -1, axis=1)[..., None], axis=-1
    )
    return jnp.sum(of_next[..., 0] * predicts, axis=1)

  return jax.jacfwd(total)(jnp.zeros((tokens.shape[1], dim)))


#: Shares of a loss that is recovered, and the loss.
ABLATED = {
  'loss_recovered': 'loss_mean_ablated',
  'loss_recovered_zero': 'loss_zero_ablated',
  'ce_loss_score': 'ce_loss_with_ablation',
}


def check_equal(got, want, rtol):
  """Differences of losses keep the absolute errors of losses."""
  assert got.keys() == want.keys()
  error = rtol * want['loss_clean']
  for name, value in want.items():
    tolerance = {'rtol': rtol}
    if name == 'delta_lm_loss':
      tolerance = {'atol': 2 * error}
    if name in ABLATED:
      harm = abs(want[ABLATED[name]] - want['loss_clean'])
      tolerance = {'atol': 2 * error * (1 + abs(value)) / harm}
    np.testing.assert_allclose(got[name], value, err_msg=name, **tolerance)


@pytest.mark.parametrize(
  ('where', 'splice_special'),
  [*((where, False) for where in SITES), (RESID, False), (RESID, True)],
  ids=str,
)
def test_metrics_equal_the_reference(model, where, splice_special):
  setting = make_setting(
    model, where, splice_special=splice_special, importance_sequences=6
  )
  sae = random_sae(model.architecture.site_dim(where.name))
  check_equal(evaluate(sae, setting), reference(sae, setting), rtol=1e-5)


def median_norm(model, site):
  (found,) = tap(model, heldout(), (site,))
  return float(np.median(np.linalg.norm(found, axis=-1)))


@pytest.mark.parametrize('rows', [4, 13])
def test_positions_beyond_the_limits_count_as_special_ones(model, rows):
  """At any site of the harvest, a later one too."""
  limits = tuple(
    (site, 1.1 * median_norm(model, site))
    for site in (RESID, sites.Site('resid_post', 1))
  )
  setting = make_setting(
    model, limits=limits, rows=rows, importance_sequences=6
  )
  sae = random_sae(16)
  check_equal(evaluate(sae, setting), reference(sae, setting), rtol=1e-5)


@pytest.mark.parametrize(('source', 'where'), PAIRS, ids=str)
def test_metrics_of_transcoders_equal_the_reference(model, source, where):
  setting = make_setting(model, where, source=source, importance_sequences=6)
  widths = [model.architecture.site_dim(s.name) for s in (source, where)]
  sae = random_sae(*widths)
  check_equal(evaluate(sae, setting), reference(sae, setting), rtol=1e-5)


@flax.struct.dataclass
class Exact:
  """x_hat + (x - x_hat): an SAE whose error is given back."""

  sae: released.SAE

  def encode(self, x_BD):
    return self.sae.encode(x_BD)

  def predict(self, f_BM, x_BD):
    x_hat_BD = self.sae.predict(f_BM, x_BD)
    return x_hat_BD + (x_BD - x_hat_BD)


@pytest.mark.parametrize('where', SITES, ids=str)
def test_adding_the_error_gives_the_clean_loss(model, where):
  sae = random_sae(model.architecture.site_dim(where.name))
  setting = make_setting(model, where)
  got, without = evaluate(Exact(sae), setting), evaluate(sae, setting)
  assert abs(got['delta_lm_loss']) < 1e-5
  assert abs(got['kl']) < 1e-5
  np.testing.assert_allclose(got['loss_recovered'], 1, atol=1e-4)
  assert abs(without['delta_lm_loss']) > 1e-3
  assert without['kl'] > 1e-3


def test_text_without_predictions_is_refused(model):
  setting = evaluation.Setting(model, np.full((3, 8), 2), RESID, 3)
  with pytest.raises(errors.InputError, match='no two tokens of text in a row'):
    evaluate(random_sae(16), setting)


def test_zero_sae_gives_what_zeros_give(model):
  setting = make_setting(model, importance_sequences=6)
  baseline = evaluation.measure_baseline(setting)
  silent = random_sae(16).replace(
    threshold=jnp.full(20, 1e6), b_dec=jnp.zeros(16)
  )
  got = evaluation.evaluate(silent, setting, baseline)
  assert (got['l0'], got['dead_fraction'], got['cosine']) == (0, 1, 0)
  assert (got['frac_over_1pct'], got['frac_over_10pct']) == (0, 0)
  assert math.isnan(got['relative_reconstruction_bias'])
  assert math.isnan(got['importance_uniformity'])
  np.testing.assert_allclose(
    got['loss_spliced'], baseline.loss_zero_ablated, rtol=1e-6
  )
  np.testing.assert_allclose(got['loss_recovered_zero'], 0, atol=1e-5)
  (y_BLD,) = transformer.tap(model, setting.tokens_NL, (RESID,))
  y = np.float64(y_BLD)[setting.tokens_NL > 2]
  np.testing.assert_allclose(
    got['fvu'], 1 + (y.mean(0) ** 2).sum() / y.var(0).sum(), rtol=1e-6
  )


def test_silent_sae_predicts_its_bias(model):
  setting = make_setting(model)
  baseline = evaluation.measure_baseline(setting)
  silent = random_sae(16).replace(
    threshold=jnp.full(20, 1e6), b_dec=jnp.asarray(baseline.mean_D, 'float32')
  )
  got = evaluation.evaluate(silent, setting, baseline)
  for name, value in {
    'fvu': 1,
    'relative_reconstruction_bias': 1,
    'loss_spliced': baseline.loss_mean_ablated,
  }.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-6, err_msg=name)
  np.testing.assert_allclose(got['loss_recovered'], 0, atol=1e-4)
  assert (got['l0'], got['dead_fraction']) == (0, 1)


def test_a_basis_and_its_negative_reconstruct_everything(model):
  basis_DD, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))
  W_enc = np.concatenate([basis_DD, -basis_DD], axis=1).astype('float32')
  sae = released.SAE(
    W_enc, jnp.zeros(32), W_enc.T, jnp.zeros(16), jnp.zeros(32)
  )
  got = evaluate(sae, make_setting(model))
  assert got['l0'] == 16
  assert got['fvu'] < 1e-12
  assert abs(got['delta_lm_loss']) < 1e-6
  for name in ('cosine', 'relative_reconstruction_bias', 'explained_variance'):
    np.testing.assert_allclose(got[name], 1, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize('splice_special', [False, True])
def test_special_positions_are_spliced_if_asked(model, splice_special):
  where = sites.Site('resid_post', 1)
  tokens_BL = jnp.asarray(heldout())
  splice = make_setting(model, where, splice_special=splice_special).splice
  clean = splicing.run_clean(model, tokens_BL, splice)
  zeros = jnp.zeros_like(clean.y_ND)
  end_BLD = run_with(model, clean, zeros, splice)
  changed_BL = np.abs(end_BLD - clean.end_BLD).max(-1) > 1e-4
  # After the last block a position depends on that position alone.
  is_text_BL = np.asarray(tokens_BL) > 2
  np.testing.assert_array_equal(changed_BL, is_text_BL | splice_special)
  assert not is_text_BL.all()


def poisoned(model, layers):
  """The model with blocks that give NaN."""
  blocks = jax.tree.map(lambda p: p.at[:layers].set(jnp.nan), model.blocks)
  return model.replace(blocks=blocks)


@pytest.mark.parametrize(
  ('where', 'layers'),
  [(sites.Site('mlp_out', 1), 1), (sites.Site('resid_post', 0), 1)],
  ids=str,
)
def test_what_comes_before_the_site_is_not_run_again(model, where, layers):
  splice = make_setting(model, where).splice
  clean = splicing.run_clean(model, jnp.asarray(heldout()), splice)
  rows_ND = clean.y_ND + 1
  np.testing.assert_array_equal(
    run_with(poisoned(model, layers), clean, rows_ND, splice),
    run_with(model, clean, rows_ND, splice),
  )


def test_logits_are_held_for_few_positions(model):
  setting = dataclasses.replace(make_setting(model), tokens_NL=heldout(8, 24))
  splice = dataclasses.replace(setting.splice, positions=2)
  tokens_BL = jnp.asarray(setting.tokens_NL)
  clean = splicing.run_clean(model, tokens_BL, splice)

  def evaluated(model, clean, splice):
    end_BLD = splicing.run_with(model, clean, clean.y_ND + 1, splice)
    found = splicing.at_predictions(
      metrics.of_predictions, model, clean, splice, clean.end_BLD, end_BLD
    )
    fn = metrics.centred_logit
    return found, splicing.gradient(fn, model, clean, splice)

  evaluated = jax.jit(evaluated, static_argnums=2)
  program = evaluated.lower(model, clean, splice).as_text()
  # The vocabulary has 40 tokens, and no other axis at an end is of that size.
  shapes = re.findall(r'tensor<([0-9x]*x40)xf32>', program)
  sizes = {math.prod(map(int, shape.split('x'))) for shape in shapes}
  assert max(sizes) == 8 * 2 * 40
  at_once = dataclasses.replace(splice, positions=100)
  found, want = (
    evaluated(model, clean, splice) for splice in (splice, at_once)
  )
  assert found[0]['kl'].shape == (8, 23)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
    found,
    want,
  )


def test_batch_size_changes_no_metric(model):
  sae = random_sae(16)
  results = [
    evaluate(sae, make_setting(model, rows=rows, importance_sequences=6))
    for rows in (4, 13)
  ]
  check_equal(*results, rtol=1e-6)


def test_shards_merge_to_the_same_metrics(model):
  sae, setting = random_sae(16), make_setting(model)
  parts = [
    dataclasses.replace(setting, tokens_NL=tokens)
    for tokens in np.split(setting.tokens_NL, [2, 3, 9])
  ]
  activations = metrics.merge(*map(evaluation.measure_activations, parts))
  mean_D = metrics.mean_of(activations)
  ablations = metrics.merge(
    *[evaluation.measure_ablations(part, mean_D) for part in parts]
  )
  baseline = metrics.baseline(activations, ablations)
  of_parts = [evaluation.measure([sae], part, baseline)[0] for part in parts]
  got = metrics.finish(metrics.merge(*of_parts), baseline)
  check_equal(
    {k: v for k, v in got.items() if v == v},
    {k: v for k, v in evaluate(sae, setting).items() if v == v},
    rtol=1e-6,
  )


def test_a_mesh_changes_no_metric(model, tiny_lm):
  sae = random_sae(16)
  one = evaluate(sae, make_setting(model, rows=8, importance_sequences=6))
  for shape in ((8, 1), (2, 4)):
    mesh = sharding.make_mesh(*shape)
    on_mesh = huggingface.load(tiny_lm, mesh=mesh)
    setting = make_setting(on_mesh, rows=8, importance_sequences=6, mesh=mesh)
    check_equal(evaluate(sae, setting), one, rtol=1e-6)


def test_saes_measured_together_are_as_each_alone(model):
  setting = make_setting(model, importance_sequences=6)
  baseline = evaluation.measure_baseline(setting)
  top_k = random_sae(16, seed=2)
  saes = [
    random_sae(16),
    random_sae(16, seed=1),
    released.TopKSAE(top_k.W_enc, top_k.b_enc, top_k.W_dec, top_k.b_dec, k=3),
  ]
  together = evaluation.measure(saes, setting, baseline)
  for sae, sums in zip(saes, together, strict=True):
    for _ in range(2):
      alone = evaluation.evaluate(sae, setting, baseline)
      assert metrics.finish(sums, baseline) == alone
  assert metrics.finish(together[2], baseline)['l0'] <= 3
