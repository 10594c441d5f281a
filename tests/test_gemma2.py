"""Gemma 2 against transformers, its masks, its hooks and the loss."""

import copy
import types

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from jumprelu_jax.lm import gemma2
from jumprelu_jax.lm import huggingface
from jumprelu_jax.lm import loss as lm_loss
from jumprelu_jax.lm import sites

# Every constant differs from transformers' default and is large or small enough
# to matter: the window is shorter than the sequences, the soft-caps bend, eps
# shows, and heads * head_dim != hidden_size.
GROUPED = {
  'vocab_size': 61,
  'hidden_size': 48,
  'intermediate_size': 40,
  'num_hidden_layers': 3,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 8,
  'max_position_embeddings': 32,
  'sliding_window': 5,
  'query_pre_attn_scalar': 3,
  'rope_theta': 100.0,
  'rms_norm_eps': 1e-2,
  'attn_logit_softcapping': 2.0,
  'final_logit_softcapping': 3.0,
}
CONFIGS = {
  'grouped': GROUPED,
  'mha': GROUPED | {'num_key_value_heads': 4, 'head_dim': 16},
  'uncapped': GROUPED
  | {'attn_logit_softcapping': None, 'final_logit_softcapping': None},
}
SITES = [
  sites.Site(name, layer)
  for layer in range(GROUPED['num_hidden_layers'])
  for name in sites.SITE_NAMES
]
LENGTH = 16


@pytest.fixture(scope='module', params=CONFIGS)
def pair(request, tmp_path_factory):
  """A random model in transformers and here, and tokens for them."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  values = dict(CONFIGS[request.param])
  rope = {'rope_type': 'default', 'rope_theta': values.pop('rope_theta')}
  config = transformers.Gemma2Config(**values, rope_parameters=rope)
  reference = transformers.Gemma2ForCausalLM._from_config(
    copy.deepcopy(config),  # transformers changes the config it is given
    attn_implementation='eager',
    dtype=torch.float32,
  ).eval()
  randomise(reference)
  folder = tmp_path_factory.mktemp('lm')
  reference.save_pretrained(folder)
  tokens_BL = random_tokens(0)
  return types.SimpleNamespace(
    reference=reference, model=huggingface.load(folder), tokens_BL=tokens_BL
  )


def randomise(reference):
  """Draws every parameter; as made, all norm weights are zero."""
  torch = pytest.importorskip('torch')
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, p in reference.named_parameters():
      scale = 0.5 if 'norm' in name else p.shape[-1] ** -0.5
      p.copy_(scale * torch.randn(p.shape, generator=generator))


def random_tokens(seed):
  rng = np.random.default_rng(seed)
  return rng.integers(3, GROUPED['vocab_size'], (2, LENGTH))


def random_model(**changes):
  """A random model of ours with no gain at zero."""
  config = gemma2.Gemma2Config(**(GROUPED | changes))
  model = gemma2.init(config, jax.random.key(0))
  leaves, treedef = jax.tree.flatten(model)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  leaves = [
    x + 0.5 * jax.random.normal(key, x.shape) if x.ndim == 1 else x
    for x, key in zip(leaves, keys, strict=True)
  ]
  return jax.tree.unflatten(treedef, leaves)


def hook_reference(reference, where, fn):
  """Replaces x at one site by fn(x) in transformers; returns the handle."""
  layer = reference.model.layers[where.layer]
  if where.name == 'resid_post':
    return layer.register_forward_hook(lambda module, args, x: fn(x))
  if where.name == 'mlp_out':
    norm = layer.post_feedforward_layernorm
    return norm.register_forward_hook(lambda module, args, x: fn(x))
  o_proj = layer.self_attn.o_proj
  return o_proj.register_forward_pre_hook(lambda module, args: (fn(args[0]),))


def run_reference(reference, tokens_BL, where, fn):
  """Returns transformers' logits with one site's activations replaced."""
  torch = pytest.importorskip('torch')
  handle = hook_reference(reference, where, fn)
  try:
    with torch.no_grad():
      return reference(torch.from_numpy(tokens_BL)).logits.float().numpy()
  finally:
    handle.remove()


def assert_close(got, want):
  # Relative to the largest value: a small entry is a difference of large ones
  # and keeps their rounding error.
  atol = 1e-5 * np.abs(want).max()
  np.testing.assert_allclose(got, want, rtol=0, atol=atol)


def test_logits_match_transformers(pair):
  want = run_reference(pair.reference, pair.tokens_BL, SITES[0], lambda x: x)
  with jax.default_matmul_precision('highest'):
    got = gemma2.logits(pair.model, pair.tokens_BL)
  assert_close(got, want)


@pytest.mark.parametrize('where', SITES, ids=str)
def test_tapped_activations_match_transformers(pair, where):
  found = []

  def keep(x):
    found.append(x.numpy())
    return x

  run_reference(pair.reference, pair.tokens_BL, where, keep)
  with jax.default_matmul_precision('highest'):
    got = gemma2.tap(pair.model, pair.tokens_BL, where)
  assert_close(got, found[0])
  assert got.shape[-1] == pair.model.config.site_dim(where.name)


@pytest.mark.parametrize('pair', ['grouped'], indirect=True)
@pytest.mark.parametrize('where', SITES, ids=str)
def test_splice_replaces_as_a_hook_in_transformers_does(pair, where):
  def fn(x):
    return 2 * abs(x) - 1

  want = run_reference(pair.reference, pair.tokens_BL, where, fn)
  with jax.default_matmul_precision('highest'):
    got = gemma2.logits(pair.model, pair.tokens_BL, sites.splice(where, fn))
  assert_close(got, want)


@pytest.mark.parametrize('pair', ['grouped'], indirect=True)
def test_bfloat16_embedding_is_scaled_as_in_transformers(pair):
  torch = pytest.importorskip('torch')
  reference = copy.deepcopy(pair.reference)
  model = pair.model
  # A gain of zero after each sub-layer leaves the scaled embedding alone.
  with torch.no_grad():
    for layer in reference.model.layers:
      layer.post_attention_layernorm.weight.fill_(-1)
      layer.post_feedforward_layernorm.weight.fill_(-1)
  blocks = tuple(
    block.replace(
      post_attn_norm_D=-jnp.ones_like(block.post_attn_norm_D),
      post_mlp_norm_D=-jnp.ones_like(block.post_mlp_norm_D),
    )
    for block in model.blocks
  )
  model = jax.tree.map(
    lambda x: x.astype('bfloat16'), model.replace(blocks=blocks)
  )
  found = []
  where = sites.Site('resid_post', 0)
  run_reference(
    reference.to(torch.bfloat16),
    pair.tokens_BL,
    where,
    lambda x: found.append(x.float().numpy()),  # None: x flows on
  )
  got = gemma2.tap(model, pair.tokens_BL, where)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_array_equal(got.astype('float32'), found[0])


@pytest.mark.parametrize('where', SITES, ids=str)
def test_splicing_a_site_by_itself_changes_no_loss(where):
  model, tokens_BL = random_model(), random_tokens(1)
  special = lm_loss.special_ids(model.config)
  hook = sites.splice(where, lambda x: x)
  got, _ = lm_loss.next_token_loss(
    gemma2.logits(model, tokens_BL, hook), tokens_BL, special
  )
  want, _ = lm_loss.next_token_loss(
    gemma2.logits(model, tokens_BL), tokens_BL, special
  )
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_hook_is_called_once_at_every_site_of_every_layer():
  seen = []

  def hook(site, x_BLD):
    seen.append(site)
    return x_BLD

  gemma2.logits(random_model(), random_tokens(0), hook)
  assert len(seen) == len(SITES)
  assert set(seen) == set(SITES)


def test_tap_runs_no_later_block():
  model = random_model()
  where = sites.Site('resid_post', 1)
  want = gemma2.tap(model, random_tokens(0), where)
  # A block of None cannot run.
  model = model.replace(blocks=(*model.blocks[:2], None))
  np.testing.assert_array_equal(
    gemma2.tap(model, random_tokens(0), where), want
  )


def test_later_token_changes_no_earlier_logit():
  model, tokens_BL = random_model(), random_tokens(2)
  changed_BL = tokens_BL.copy()
  changed_BL[:, 9] = np.where(tokens_BL[:, 9] == 3, 4, 3)
  before = gemma2.logits(model, tokens_BL)
  after = gemma2.logits(model, changed_BL)
  np.testing.assert_allclose(after[:, :9], before[:, :9], rtol=0, atol=1e-6)
  # The global layer carries the change to every later position.
  assert (np.abs(after - before)[:, 9:].max(-1) > 1e-4).all()


def test_sliding_layer_sees_only_its_window():
  model, tokens_BL = random_model(num_hidden_layers=1), random_tokens(3)
  window = model.config.sliding_window
  changed_BL = tokens_BL.copy()
  changed_BL[:, 2] = np.where(tokens_BL[:, 2] == 3, 4, 3)
  before = gemma2.logits(model, tokens_BL)
  after = gemma2.logits(model, changed_BL)
  change_BL = np.abs(after - before).max(-1)
  assert (change_BL[:, 2 : 2 + window] > 1e-4).all()
  assert (change_BL[:, 2 + window :] < 1e-6).all()


def test_next_token_loss_by_hand_masks_special_tokens():
  # Ids: 0 PAD, 1 EOS, 2 BOS; 3 and 4 are text.
  tokens_BL = jnp.asarray([[2, 3, 4, 4, 1, 3, 0]])
  probability_LV = np.asarray([
      [0.1, 0.1, 0.1, 0.5, 0.2],  # BOS → 3: BOS does not count
      [0.1, 0.1, 0.1, 0.2, 0.5],  # 3 → 4: counts, -log 0.5
      [0.1, 0.1, 0.1, 0.6, 0.1],  # 4 → 4: counts, -log 0.1
      [0.1, 0.4, 0.1, 0.3, 0.1],  # 4 → EOS does not count
      [0.1, 0.1, 0.1, 0.4, 0.3],  # EOS → 3: EOS does not count
      [0.8, 0.1, 0.0, 0.1, 0.0],  # 3 → PAD does not count
      [0.2, 0.2, 0.2, 0.2, 0.2],  # PAD: no next token
  ]) + 1e-9  # fmt: skip
  logits_BLV = jnp.asarray(np.log(probability_LV) + 7, jnp.float32)[None]
  special = lm_loss.special_ids(random_model().config)
  loss_BL, counts_BL = lm_loss.next_token_loss(logits_BLV, tokens_BL, special)
  want = [-np.log(p) for p in (0.5, 0.5, 0.1, 0.4, 0.4, 0.8)]
  np.testing.assert_allclose(loss_BL, [[*want, 0.0]], rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(counts_BL, [[0, 1, 1, 0, 0, 0, 0]])
  assert loss_BL.dtype == counts_BL.dtype == jnp.float32
