"""Formats of others: read back as written, and as their owners mean them."""

from helpers import format_saes
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from jumprelu_jax import errors
from jumprelu_jax.exchange import formats

D, M = 8, 24


#: What each format cannot hold, and why; the rest it can.
CANNOT = {
  ('gemma_scope', 'topk'): 'k instead of thresholds',
  ('gemma_scope', 'skip'): 'a skip connection',
  ('gemma_scope', 'topk_skip'): 'k instead of thresholds',
  ('gemma_scope2', 'topk'): 'k instead of thresholds',
  ('gemma_scope2', 'topk_skip'): 'k instead of thresholds',
  ('saelens', 'topk_skip'): 'a transcoder with k',
  ('llamascopium', 'skip'): 'a skip connection',
  ('llamascopium', 'topk_skip'): 'a skip connection',
  ('dictionary_learning', 'skip'): 'transcoders',
  ('dictionary_learning', 'topk_skip'): 'transcoders',
  ('sparsify', 'jumprelu'): 'thresholds',
  ('sparsify', 'relu'): 'thresholds',
  ('sparsify', 'skip'): 'thresholds',
}
X_BD = format_saes.random(50, D, seed=4)


def details_of(kind):
  return format_saes.TRANSCODER if 'skip' in kind else format_saes.DETAILS


@pytest.mark.parametrize('kind', format_saes.SAES)
@pytest.mark.parametrize('name', formats.FORMATS)
def test_what_is_written_is_read_back(tmp_path, name, kind):
  sae, folder = format_saes.SAES[kind], tmp_path / 'sae'
  if (name, kind) in CANNOT:
    with pytest.raises(errors.InputError, match=CANNOT[name, kind]):
      formats.save(sae, details_of(kind), folder, name)
    return
  formats.save(sae, details_of(kind), folder, name)
  assert formats.recognise(folder)[0] == name
  found, details = formats.load(folder)
  assert type(found) is type(sae)
  f, want = found.encode(X_BD), sae.encode(X_BD)
  np.testing.assert_array_equal(f > 0, want > 0)
  np.testing.assert_allclose(f, want, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(found(X_BD), sae(X_BD), rtol=1e-5, atol=1e-5)
  if name != 'gemma_scope':  # which knows an SAE by its folder alone
    place = (details.site, details.layer, details.target_site)
    wanted = details_of(kind)
    # sparsify's folder is named by the hookpoint, which this one is not.
    if name != 'sparsify':
      assert place == (wanted.site, wanted.layer, wanted.target_site)


def float64_relu_sae(x_BD, arrays, subtracts, threshold):
  x_BD = x_BD.astype('float64')
  shifted = x_BD - (arrays['b_dec'] if subtracts else 0)
  pre = np.maximum(shifted @ arrays['W_enc'] + arrays['b_enc'], 0)
  f = np.where(pre > threshold, pre, 0)
  return f, f @ arrays['W_dec'] + arrays['b_dec']


def assert_computes(folder, f, y_hat):
  sae, _ = formats.load(folder)
  np.testing.assert_allclose(sae.encode(X_BD), f, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(sae(X_BD), y_hat, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ('config', 'subtracts'),
  [
    ({'metadata': {'sae_lens_version': '6.1.0'}}, True),
    ({'apply_b_dec_to_input': False}, False),
    # The trap: of before version 6, b_dec is subtracted unless it says not.
    ({'hook_name': 'blocks.3.hook_resid_post'}, True),
  ],
)
@pytest.mark.parametrize('is_log', [False, True])
def test_saelens_subtracts_where_it_would(tmp_path, config, subtracts, is_log):
  arrays, threshold = (
    format_saes.maps(),
    np.abs(format_saes.random(M, seed=2)) + 0.1,
  )
  tensors = dict(arrays)
  if is_log:
    tensors['log_threshold'] = np.log(threshold)
  else:
    tensors['threshold'] = threshold
  folder = format_saes.write_foreign(
    tmp_path / 'sae',
    tensors,
    {'architecture': 'jumprelu', **config},
    'sae_weights.safetensors',
    'cfg.json',
  )
  assert_computes(folder, *float64_relu_sae(X_BD, arrays, subtracts, threshold))


def test_saelens_gated_is_a_jumprelu(tmp_path):
  arrays = format_saes.maps()
  b_gate, r_mag, b_mag = (
    0.3 * format_saes.random(M, seed=s) for s in (5, 6, 7)
  )
  tensors = {k: arrays[k] for k in ('W_enc', 'W_dec', 'b_dec')} | {
    'b_gate': b_gate,
    'r_mag': r_mag,
    'b_mag': b_mag,
  }
  folder = format_saes.write_foreign(
    tmp_path / 'sae',
    tensors,
    {'architecture': 'gated', 'metadata': {'sae_lens_version': '6.0.0'}},
    'sae_weights.safetensors',
    'cfg.json',
  )
  z = (X_BD.astype('float64') - arrays['b_dec']) @ arrays['W_enc']
  f = (z + b_gate > 0) * np.maximum(np.exp(r_mag) * z + b_mag, 0)
  assert_computes(folder, f, f @ arrays['W_dec'] + arrays['b_dec'])


def test_saelens_topk_may_choose_by_decoder_norms(tmp_path):
  arrays = format_saes.maps()
  config = {
    'architecture': 'topk',
    'k': 4,
    'rescale_acts_by_decoder_norm': True,
    'apply_b_dec_to_input': False,
  }
  folder = format_saes.write_foreign(
    tmp_path / 'sae', arrays, config, 'sae_weights.safetensors', 'cfg.json'
  )
  norms = np.linalg.norm(arrays['W_dec'].astype('float64'), axis=1)
  pre = (X_BD.astype('float64') @ arrays['W_enc'] + arrays['b_enc']) * norms
  least = np.sort(pre, axis=1)[:, -4:-3]
  f = np.where(pre >= least, np.maximum(pre, 0), 0)
  y_hat = f @ (arrays['W_dec'] / norms[:, None]) + arrays['b_dec']
  assert_computes(folder, f, y_hat)


def test_saelens_that_normalises_tokens_is_refused(tmp_path):
  config = {'architecture': 'standard', 'normalize_activations': 'layer_norm'}
  folder = format_saes.write_foreign(
    tmp_path / 'sae',
    format_saes.maps(),
    config,
    'sae_weights.safetensors',
    'cfg.json',
  )
  with pytest.raises(errors.InputError, match="'layer_norm' is not folded"):
    formats.load(folder)


@pytest.mark.parametrize(
  ('name', 'extra', 'subtracts', 'threshold'),
  [
    ('AutoEncoder', {}, True, 0.0),
    ('BatchTopKSAE', {'k': 3, 'threshold': 0.7}, True, 0.7),
    ('BatchTopKSAE', {'k': 3, 'threshold': -1.0}, True, -1.0),
  ],
)
def test_dictionary_learning_classes(
  tmp_path, name, extra, subtracts, threshold
):
  arrays = format_saes.maps()
  bias = 'bias' if name == 'AutoEncoder' else 'b_dec'
  tensors = {
    'encoder.weight': arrays['W_enc'].T.copy(),
    'encoder.bias': arrays['b_enc'],
    'decoder.weight': arrays['W_dec'].T.copy(),
    bias: arrays['b_dec'],
  } | {
    key: np.asarray(value, 'int32' if key == 'k' else 'float32')
    for key, value in extra.items()
  }
  config = {'trainer': {'dict_class': name, 'layer': 2, 'lm_name': 'm'}}
  folder = format_saes.write_foreign(
    tmp_path / 'sae', tensors, config, 'ae.pt', 'config.json'
  )
  assert_computes(folder, *float64_relu_sae(X_BD, arrays, subtracts, threshold))


def test_llamascopium_folds_a_datasets_norm(tmp_path):
  arrays, threshold = (
    format_saes.maps(),
    np.abs(format_saes.random(M, seed=2)) + 0.1,
  )
  norm, hook = 3.0, 'blocks.3.hook_resid_post'
  tensors = {
    'W_E': arrays['W_enc'],
    'b_E': arrays['b_enc'],
    'W_D': arrays['W_dec'],
    'b_D': arrays['b_dec'],
    'activation_function.log_jumprelu_threshold': np.log(threshold),
    f'dataset_average_activation_norm.{hook}': np.float32(norm),
  }
  config = {
    'sae_type': 'sae',
    'act_fn': 'jumprelu',
    'norm_activation': 'dataset-wise',
    'sparsity_include_decoder_norm': True,
    'hook_point_in': hook,
    'hook_point_out': hook,
  }
  folder = format_saes.write_foreign(
    tmp_path / 'sae',
    {k: np.asarray(v) for k, v in tensors.items()},
    config,
    'sae_weights.safetensors',
    'config.json',
  )
  # As it computes: inputs of norm sqrt(D), the threshold on f times the norm.
  factor = np.sqrt(D) / norm
  pre = X_BD.astype('float64') * factor @ arrays['W_enc'] + arrays['b_enc']
  norms = np.linalg.norm(arrays['W_dec'].astype('float64'), axis=1)
  f = np.where(pre * norms > threshold, pre, 0)
  y_hat = (f @ arrays['W_dec'] + arrays['b_dec']) / factor
  assert_computes(folder, f / factor, y_hat)


@pytest.mark.parametrize(
  ('path', 'want'),
  [
    (
      'gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71',
      ('google/gemma-2-2b', 'resid_post', 20, '', 71.0),
    ),
    (
      'gemma-scope-9b-it-att/layer_9/width_131k/average_l0_50',
      ('google/gemma-2-9b-it', 'attn_z', 9, '', 50.0),
    ),
    (
      'gemma-scope-2b-pt-transcoders/layer_4/width_16k/average_l0_88',
      ('google/gemma-2-2b', 'mlp_in', 4, 'mlp_out', 88.0),
    ),
  ],
)
def test_gemma_scope_is_known_by_its_folder(tmp_path, path, want):
  folder = tmp_path / path
  formats.save(
    format_saes.SAES['jumprelu'], format_saes.DETAILS, folder, 'gemma_scope'
  )
  _, details = formats.load(folder)
  assert want == (
    details.model,
    details.site,
    details.layer,
    details.target_site,
    details.l0,
  )


def test_what_is_no_sae_is_listed(tmp_path):
  (tmp_path / 'notes.txt').write_text('nothing')
  with pytest.raises(errors.InputError, match='it holds notes.txt; expected'):
    formats.load(tmp_path)
  with pytest.raises(errors.InputError, match='it holds nothing'):
    formats.load(tmp_path / 'nowhere')


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
  (tmp_path / 'notes.txt').write_text('mine')
  with pytest.raises(errors.InputError, match='is not empty'):
    formats.save(
      format_saes.SAES['jumprelu'], format_saes.DETAILS, tmp_path, 'saelens'
    )
  assert [p.name for p in tmp_path.iterdir()] == ['notes.txt']


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float64'])
def test_other_dtypes_become_float32(tmp_path, dtype):
  arrays = {
    k: v.astype(jnp.dtype(dtype)) for k, v in format_saes.maps().items()
  }
  config = {'architecture': 'standard', 'apply_b_dec_to_input': False}
  folder = format_saes.write_foreign(
    tmp_path / 'sae', arrays, config, 'sae_weights.safetensors', 'cfg.json'
  )
  sae, _ = formats.load(folder)
  leaves = jax.tree.leaves(sae)
  assert {leaf.dtype for leaf in leaves} == {jnp.dtype('float32')}
