"""The one forward pass against transformers: every family, every site."""

import tempfile
import types

from helpers import families
import jax
from jax import numpy as jnp
import numpy as np
import pytest
import torch

from jumprelu_jax import errors
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


def test_logits_match_transformers(pair):
  want = families.run(pair.reference, pair.tokens_BL, {})
  with jax.default_matmul_precision('highest'):
    got = transformer.logits(pair.model, pair.tokens_BL)
  assert got.dtype == jnp.float32
  families.assert_close(got, want)


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
    families.assert_close(x_BLD, found[site], err_msg=str(site))
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
  families.assert_close(got, want)


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
  families.assert_close(got, want)


@pytest.mark.parametrize('length', [1, 63, 64, 65])
def test_any_length_matches_transformers(length):
  reference = families.make('gemma2')
  model = load_saved(reference)
  tokens_BL = families.tokens(1, length)
  with jax.default_matmul_precision('highest'):
    got = transformer.logits(model, tokens_BL)
  families.assert_close(got, families.run(reference, tokens_BL, {}))


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
