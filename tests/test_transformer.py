"""The one forward pass against transformers: every family, every site."""

import tempfile
import types

import families
import jax
from jax import numpy as jnp
import numpy as np
import pytest
import torch

from jumprelu_jax import errors
from jumprelu_jax import sharding
from jumprelu_jax.lm import gemma2
from jumprelu_jax.lm import huggingface
from jumprelu_jax.lm import sites
from jumprelu_jax.lm import transformer

EVERYWHERE = [
  sites.Site(name, layer)
  for layer in range(families.LAYERS)
  for name in sites.SITES
]
PARALLEL = {'gpt_neox'}


@pytest.fixture(scope='module', params=families.CASES)
def pair(request, tmp_path_factory):
  """A random model in transformers and here, and tokens for them."""
  reference = families.make(request.param)
  folder = tmp_path_factory.mktemp('lm')
  reference.save_pretrained(folder)
  return types.SimpleNamespace(
    case=request.param,
    reference=reference,
    model=huggingface.load(folder),
    tokens_BL=families.tokens(),
  )


def sites_of(pair):
  return [
    where
    for where in EVERYWHERE
    if not (pair.case in PARALLEL and where.name == 'resid_mid')
  ]


def assert_close(got, want, **kwargs):
  # Relative to the largest value: a small entry is a difference of large ones
  # and keeps their rounding error.
  atol = 1e-5 * np.abs(want).max()
  np.testing.assert_allclose(got, want, rtol=0, atol=atol, **kwargs)


def random_model(seed=0, **values):
  """A random Gemma 2 of ours with no gain at zero."""
  architecture = gemma2.architecture(**(families.GEMMA2 | values))
  model = transformer.init(architecture, jax.random.key(seed))
  leaves, treedef = jax.tree.flatten(model)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  return treedef.unflatten(
    x + 0.5 * jax.random.normal(key, x.shape) if x.ndim <= 2 else x
    for x, key in zip(leaves, keys, strict=True)
  )


def test_logits_match_transformers(pair):
  want = families.run(pair.reference, pair.tokens_BL, {})
  with jax.default_matmul_precision('highest'):
    got = transformer.logits(pair.model, pair.tokens_BL)
  assert got.dtype == jnp.float32
  assert_close(got, want)


def test_every_tapped_site_matches_transformers(pair):
  found, where = {}, sites_of(pair)

  def keep(site):
    return lambda x: found.update({site: x.numpy().copy()})

  families.run(
    pair.reference,
    pair.tokens_BL,
    {(site.name, site.layer): keep(site) for site in where},
  )
  with jax.default_matmul_precision('highest'):
    got = transformer.tap(pair.model, pair.tokens_BL, where)
  for site, x_BLD in zip(where, got, strict=True):
    assert_close(x_BLD, found[site], err_msg=str(site))
    assert x_BLD.shape[-1] == pair.model.architecture.site_dim(site.name)


@pytest.mark.parametrize('name', [n for n in sites.SITES if n != 'resid_mid'])
def test_splice_replaces_as_a_hook_in_transformers_does(pair, name):
  def fn(x):
    return 2 * abs(x) - 1

  where = sites.Site(name, 1)
  want = families.run(pair.reference, pair.tokens_BL, {(name, 1): fn})
  with jax.default_matmul_precision('highest'):
    got = transformer.logits(
      pair.model, pair.tokens_BL, sites.splice(where, fn)
    )
  assert_close(got, want)


def test_splice_between_attention_and_mlp(pair):
  if pair.case in PARALLEL:
    with pytest.raises(errors.InputError, match='use resid_pre or resid_post'):
      pair.model.architecture.check_site(sites.Site('resid_mid', 1))
    return
  # transformers has no module there, but what is added to the attention's
  # output is added to the residual stream.
  shift = np.linspace(-1, 1, families.SIZES['hidden_size'], dtype=np.float32)
  shift_torch = torch.from_numpy(shift)
  want = families.run(
    pair.reference, pair.tokens_BL, {('attn_out', 1): lambda x: x + shift_torch}
  )
  where = sites.Site('resid_mid', 1)
  with jax.default_matmul_precision('highest'):
    got = transformer.logits(
      pair.model,
      pair.tokens_BL,
      sites.splice(where, lambda x: x + shift[None, None]),
    )
  assert_close(got, want)


@pytest.mark.parametrize('length', [1, 63, 64, 65])
def test_any_length_matches_transformers(length):
  reference = families.make('gemma2')
  model = load_saved(reference)
  tokens_BL = families.tokens(1, length)
  with jax.default_matmul_precision('highest'):
    got = transformer.logits(model, tokens_BL)
  assert_close(got, families.run(reference, tokens_BL, {}))


def load_saved(reference):
  with tempfile.TemporaryDirectory() as folder:
    reference.save_pretrained(folder)
    return huggingface.load(folder)


def test_bfloat16_embedding_is_scaled_as_in_transformers():
  reference = families.make('gemma2')
  # A gain of zero after each sub-layer leaves the scaled embedding alone.
  with torch.no_grad():
    for layer in reference.model.layers:
      layer.post_attention_layernorm.weight.fill_(-1)
      layer.post_feedforward_layernorm.weight.fill_(-1)
  model = jax.tree.map(lambda x: x.astype('bfloat16'), load_saved(reference))
  found = []
  tokens_BL = families.tokens()
  families.run(
    reference.to(torch.bfloat16),
    tokens_BL,
    {('resid_post', 0): lambda x: found.append(x.float().numpy())},
  )
  (got,) = transformer.tap(model, tokens_BL, (sites.Site('resid_post', 0),))
  assert got.dtype == jnp.bfloat16
  np.testing.assert_array_equal(got.astype('float32'), found[0])


def test_special_positions_can_be_left_as_they_are():
  model, tokens_BL = random_model(), families.tokens(2)
  where = sites.Site('resid_post', 1)
  replaced_BL = jnp.asarray(tokens_BL % 3 > 0)
  seen = {}

  def keep(x_BLD):
    seen['x'] = x_BLD
    return x_BLD

  hooks = sites.splice(where, lambda x: 0 * x, replaced_BL)
  hooks |= {sites.Site('resid_pre', 2): keep}
  transformer.logits(model, tokens_BL, hooks)
  (x_BLD,) = transformer.tap(model, tokens_BL, (where,))
  np.testing.assert_array_equal(seen['x'][replaced_BL], 0)
  np.testing.assert_allclose(
    seen['x'][~replaced_BL], x_BLD[~replaced_BL], rtol=1e-6
  )


def test_tap_reads_no_later_block():
  model = random_model()
  where = (sites.Site('attn_z', 1),)
  tokens_BL = families.tokens()
  want = transformer.tap(model, tokens_BL, where)
  poisoned = model.replace(
    blocks=jax.tree.map(lambda p: p.at[2:].set(jnp.nan), model.blocks)
  )
  np.testing.assert_array_equal(
    transformer.tap(poisoned, tokens_BL, where), want
  )


def test_tap_of_heads_computes_no_mlp_of_its_layer():
  model, tokens_BL = random_model(), families.tokens()

  def count(name, layer):
    where = (sites.Site(name, layer),)
    compiled = jax.jit(lambda t: transformer.tap(model, t, where))
    return compiled.lower(tokens_BL).compile().cost_analysis()['flops']

  mlp = 2 * tokens_BL.size * 3 * 48 * 40
  assert count('mlp_out', 0) - count('attn_z', 0) > mlp


def test_program_does_not_grow_with_depth():
  def size(layers):
    architecture = gemma2.architecture(
      **(families.GEMMA2 | {'num_hidden_layers': layers})
    )
    model = huggingface.abstract(architecture)
    where = (sites.Site('resid_post', layers - 1),)
    tokens = jax.ShapeDtypeStruct((2, families.LENGTH), 'int32')
    lowered = jax.jit(lambda m, t: transformer.tap(m, t, where)).lower(
      model, tokens
    )
    return len(lowered.as_text().splitlines())

  assert size(40) <= 1.02 * size(4)


@pytest.mark.parametrize('shape', [(2, 4), (1, 8), (8, 1)], ids=str)
def test_sharded_model_gives_the_same_logits(shape, tmp_path):
  reference = families.make('gemma3')
  reference.save_pretrained(tmp_path)
  mesh = sharding.make_mesh(*shape)
  model = huggingface.load(tmp_path, mesh=mesh)
  tokens_BL = np.concatenate([families.tokens(s) for s in range(4)])
  tokens = jax.device_put(tokens_BL, sharding.of_batch(mesh))
  with jax.default_matmul_precision('highest'):
    got = jax.jit(transformer.logits)(model, tokens)
    want = transformer.logits(huggingface.load(tmp_path), tokens_BL)
  assert_close(got, np.asarray(want))
  spec = model.blocks.W_down_FD.sharding.spec
  assert spec[1] == 'latent'  # 40 is a multiple of 1, 4 and 8


def test_later_token_changes_no_earlier_logit():
  model, tokens_BL = random_model(), families.tokens(2)
  changed_BL = tokens_BL.copy()
  changed_BL[:, 90] = np.where(tokens_BL[:, 90] == 3, 4, 3)
  before = transformer.logits(model, tokens_BL)
  after = transformer.logits(model, changed_BL)
  np.testing.assert_allclose(after[:, :90], before[:, :90], rtol=0, atol=1e-6)
  # The global layer carries the change to every later position.
  assert (np.abs(after - before)[:, 90:].max(-1) > 1e-5).all()


def test_gradient_flows_through_loops_and_hooks():
  # Finite differences of the loss along one direction of the residual stream.
  model, tokens_BL = random_model(), families.tokens(3, 20)
  where = sites.Site('resid_pre', 1)
  direction = jax.random.normal(jax.random.key(0), (48,))

  def loss(t):
    hooks = sites.splice(where, lambda x: x + t * direction[None, None])
    return jnp.sum(jnp.sin(transformer.logits(model, tokens_BL, hooks)))

  with jax.default_matmul_precision('highest'):
    difference = (loss(1e-2) - loss(-1e-2)) / 2e-2
    np.testing.assert_allclose(jax.grad(loss)(0.0), difference, rtol=2e-2)


@pytest.mark.parametrize(
  ('text', 'match'),
  [
    ('resid_post', 'form name/layer'),
    ('resid_post/-1', 'form name/layer'),
    ('residual/3', 'known sites: resid_pre, attn_z'),
  ],
)
def test_malformed_site_is_one_clear_error(text, match):
  with pytest.raises(errors.InputError, match=match):
    sites.parse(text)


def test_site_is_parsed():
  assert sites.parse('attn_z/12') == sites.Site('attn_z', 12)
