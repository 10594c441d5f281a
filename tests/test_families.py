"""The one forward pass against transformers: every family, every site."""

import functools
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


def list_sites(pair, layers=range(families.LAYERS)):
  return [
    sites.Site(name, layer)
    for layer in layers
    for name in sites.SITES
    if not (pair.case in PARALLEL and name == 'resid_mid')
  ]


# Jitted: each loop over layers would else be compiled at each call.
@jax.jit
def compute_logits(model, tokens_BL):
  with jax.default_matmul_precision('highest'):
    return transformer.logits(model, tokens_BL)


@functools.partial(jax.jit, static_argnums=2)
def tap(model, tokens_BL, where):
  with jax.default_matmul_precision('highest'):
    return transformer.tap(model, tokens_BL, where)


@functools.partial(jax.jit, static_argnums=2)
def splice_one(model, tokens_BL, where, index, fn_is_shift, shift_D):
  """Logits with one of some sites replaced: 2|x| - 1 there, or x + shift.

  Which one is traced, so that all share a program.
  """

  def splice(i, x_BLD):
    changed_BLD = 2 * abs(x_BLD) - 1
    if x_BLD.shape[-1] == len(shift_D):
      shifted_BLD = x_BLD + shift_D[None, None]
      changed_BLD = jnp.where(fn_is_shift, shifted_BLD, changed_BLD)
    return jnp.where(index == i, changed_BLD, x_BLD)

  hooks = {site: functools.partial(splice, i) for i, site in enumerate(where)}
  with jax.default_matmul_precision('highest'):
    return transformer.logits(model, tokens_BL, hooks)


SHIFT_D = np.linspace(-1, 1, families.SIZES['hidden_size'], dtype=np.float32)


def splice(pair, name, fn_is_shift=False):
  where = tuple(list_sites(pair, [1]))
  index = where.index(sites.Site(name, 1))
  return splice_one(
    pair.model, pair.tokens_BL, where, index, fn_is_shift, SHIFT_D
  )


def test_logits_match_transformers(pair):
  want = families.run(pair.reference, pair.tokens_BL, {})
  got = compute_logits(pair.model, pair.tokens_BL)
  assert got.dtype == jnp.float32
  families.assert_close(got, want)


def test_every_tapped_site_matches_transformers(pair):
  found, where = {}, tuple(list_sites(pair))

  def keep(site):
    return lambda x: found.update({site: x.numpy().copy()})

  families.run(
    pair.reference,
    pair.tokens_BL,
    {(site.name, site.layer): keep(site) for site in where},
  )
  got = tap(pair.model, pair.tokens_BL, where)
  for site, x_BLD in zip(where, got, strict=True):
    families.assert_close(x_BLD, found[site], err_msg=str(site))
    assert x_BLD.shape[-1] == pair.model.architecture.site_dim(site.name)


@pytest.mark.parametrize('name', [n for n in sites.SITES if n != 'resid_mid'])
def test_splice_replaces_as_a_hook_in_transformers_does(pair, name):
  hooks = {(name, 1): lambda x: 2 * abs(x) - 1}
  want = families.run(pair.reference, pair.tokens_BL, hooks)
  families.assert_close(splice(pair, name), want)


def test_splice_between_attention_and_mlp(pair):
  if pair.case in PARALLEL:
    with pytest.raises(errors.InputError, match='use resid_pre or resid_post'):
      pair.model.architecture.check_site(sites.Site('resid_mid', 1))
    return
  # transformers has no module there, but what is added to the attention's
  # output is added to the residual stream.
  shift = torch.from_numpy(SHIFT_D)
  want = families.run(
    pair.reference, pair.tokens_BL, {('attn_out', 1): lambda x: x + shift}
  )
  families.assert_close(splice(pair, 'resid_mid', fn_is_shift=True), want)


@pytest.mark.parametrize('length', [1, 63, 64, 65])
def test_any_length_matches_transformers(length):
  reference = families.make('gemma2')
  model = load_saved(reference)
  tokens_BL = families.tokens(1, length)
  got = compute_logits(model, tokens_BL)
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
