"""Every reader and writer against its library's formulas, in NumPy."""

import itertools

from helpers import format_saes
from helpers import peers
import hypothesis
from hypothesis import strategies
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from jumprelu_jax import errors
from jumprelu_jax.exchange import formats
from jumprelu_jax.sae import released

D, M = format_saes.D, format_saes.M
X_BD = format_saes.random(50, D, seed=4)
IN, OUT = 'blocks.3.hook_resid_mid', 'blocks.3.hook_mlp_out'
OTHERS = sorted(set(formats.FORMATS) - {'jumprelu_jax'})


@jax.jit
def run_ours(sae, x_BD):
  with jax.default_matmul_precision('highest'):
    return sae.encode(x_BD), sae(x_BD)


def assert_reads_as_the_library(name, folder):
  sae, _ = formats.load(folder)
  f, y = run_ours(sae, X_BD)
  want_f, want_y = peers.run(name, folder, X_BD)
  np.testing.assert_array_equal(f > 0, want_f > 0)
  np.testing.assert_allclose(f, want_f, rtol=0, atol=2e-5 * want_f.max())
  np.testing.assert_allclose(y, want_y, rtol=0, atol=2e-5 * abs(want_y).max())


def draw_maps(*, has_unit_norm):
  maps = format_saes.maps()
  norm = np.linalg.norm(maps['W_dec'], axis=1, keepdims=True)
  # Of many sizes, or all of one.
  scale = 1 if has_unit_norm else np.linspace(0.2, 3, M)[:, None]
  maps['W_dec'] = (maps['W_dec'] / norm * scale).astype('float32')
  return maps


def write_file(folder, arrays, config, name):
  """Writes a folder as the library does."""
  names = {
    'saelens': ('sae_weights.safetensors', 'cfg.json'),
    'llamascopium': ('sae_weights.safetensors', 'config.json'),
    'sparsify': ('sae.safetensors', 'cfg.json'),
    'gemma_scope2': ('params.safetensors', 'config.json'),
    'dictionary_learning': ('ae.pt', 'config.json'),
  }[name]
  return format_saes.write_foreign(folder, arrays, config, *names)


THRESHOLD = (np.abs(format_saes.random(M, seed=2)) + 0.3).astype('float32')


def llamascopium_files(activation, *, by_norm, out, is_folded):
  maps = draw_maps(has_unit_norm=False)
  arrays = {
    'W_E': maps['W_enc'],
    'b_E': maps['b_enc'],
    'W_D': maps['W_dec'],
    'b_D': maps['b_dec'],
  }
  if activation == 'jumprelu':
    log = np.log(THRESHOLD)
    arrays['activation_function.log_jumprelu_threshold'] = log
  if not is_folded:
    for hook, mean in ((IN, 3.7), (OUT, 0.9)):
      key = f'dataset_average_activation_norm.{hook}'
      arrays[key] = np.asarray(mean, 'float32')
  config = {
    'sae_type': 'sae',
    'd_model': D,
    'expansion_factor': M / D,
    'act_fn': activation,
    'norm_activation': 'inference' if is_folded else 'dataset-wise',
    'sparsity_include_decoder_norm': by_norm,
    'top_k': 5,
    'hook_point_in': IN,
    'hook_point_out': out,
  }
  return arrays, config


@pytest.mark.parametrize('is_folded', [True, False], ids=['folded', 'norms'])
@pytest.mark.parametrize('out', [IN, OUT], ids=['sae', 'transcoder'])
@pytest.mark.parametrize('by_norm', [True, False], ids=['by_norm', 'plain'])
@pytest.mark.parametrize('activation', ['relu', 'jumprelu', 'topk'])
def test_llamascopium_is_read(activation, by_norm, out, is_folded, tmp_path):
  arrays, config = llamascopium_files(
    activation, by_norm=by_norm, out=out, is_folded=is_folded
  )
  write_file(tmp_path, arrays, config, 'llamascopium')
  assert_reads_as_the_library('llamascopium', tmp_path)


def test_llamascopium_latent_of_a_zero_row_never_fires(tmp_path):
  arrays, config = llamascopium_files(
    'jumprelu', by_norm=True, out=OUT, is_folded=False
  )
  arrays['W_D'][3] = 0  # its pre-activation times the norm is above nothing
  write_file(tmp_path, arrays, config, 'llamascopium')
  assert_reads_as_the_library('llamascopium', tmp_path)


@pytest.mark.parametrize('seed', range(6))
def test_llamascopium_random_norms_are_folded(seed, tmp_path):
  rng = np.random.default_rng(seed)
  activation = ('relu', 'jumprelu', 'topk')[seed % 3]
  arrays, config = llamascopium_files(
    activation, by_norm=True, out=OUT, is_folded=False
  )
  arrays['W_D'] = (
    arrays['W_D'] * rng.lognormal(size=(M, 1)).astype('float32')
  ).astype('float32')
  for hook in (IN, OUT):
    key = f'dataset_average_activation_norm.{hook}'
    arrays[key] = np.asarray(rng.lognormal(1, 1), 'float32')
  write_file(tmp_path, arrays, config, 'llamascopium')
  assert_reads_as_the_library('llamascopium', tmp_path)


@pytest.mark.parametrize('has_skip', [False, True], ids=['plain', 'skip'])
@pytest.mark.parametrize('kind', ['sae', 'transcoder'])
@pytest.mark.parametrize('has_unit_norm', [True, False], ids=['unit', 'free'])
@pytest.mark.parametrize('activation', ['relu', 'jumprelu', 'topk'])
@pytest.mark.parametrize('name', OTHERS)
def test_what_is_written_means_the_same_there(
  name, activation, has_unit_norm, kind, has_skip, tmp_path
):
  """Or is refused: never written as something else."""
  maps = {
    k: jnp.asarray(v) for k, v in draw_maps(has_unit_norm=has_unit_norm).items()
  }
  if has_skip:
    maps['W_skip'] = jnp.asarray(format_saes.random(D, D, seed=3))
  sae = released.SAE(**maps, threshold=jnp.zeros(M))
  if activation == 'jumprelu':
    sae = sae.replace(threshold=jnp.asarray(THRESHOLD))
  if activation == 'topk':
    sae = released.TopKSAE(**maps, k=5)
  details = format_saes.DETAILS if kind == 'sae' else format_saes.TRANSCODER
  folder = tmp_path / 'sae'
  refused = ''
  try:
    formats.save(sae, details, folder, name)
  except errors.InputError as error:
    refused = str(error)
  if refused:
    assert 'cannot express' in refused
    fits = (activation == 'topk') == (name == 'sparsify')
    assert has_skip or kind == 'transcoder' or not fits
    return
  f, y = run_ours(sae, X_BD)
  want_f, want_y = peers.run(name, folder, X_BD)
  np.testing.assert_array_equal(f > 0, want_f > 0)
  np.testing.assert_allclose(f, want_f, rtol=0, atol=2e-5 * want_f.max())
  np.testing.assert_allclose(y, want_y, rtol=0, atol=2e-5 * abs(want_y).max())
  assert_reads_as_the_library(name, folder)


def saelens_files():
  return dict(format_saes.maps()), {'model_name': 'gpt2-small', 'd_in': D}


def sparsify_files():
  maps = format_saes.maps()
  return {
    'encoder.weight': maps['W_enc'].T,
    'encoder.bias': maps['b_enc'],
    'W_dec': maps['W_dec'],
    'b_dec': maps['b_dec'],
  }, {'d_in': D, 'num_latents': M, 'k': 4}


def gemma_scope2_files():
  maps = format_saes.maps()
  return {
    'w_enc': maps['W_enc'],
    'w_dec': maps['W_dec'],
    'b_enc': maps['b_enc'],
    'b_dec': maps['b_dec'],
    'threshold': THRESHOLD,
  }, {'architecture': 'jump_relu'}


def dictionary_learning_files():
  maps = format_saes.maps()
  return {
    'encoder.weight': maps['W_enc'].T,
    'encoder.bias': maps['b_enc'],
    'decoder.weight': maps['W_dec'].T,
    'b_dec': maps['b_dec'],
    'k': np.asarray(3, 'int32'),
    'threshold': np.asarray(0.4, 'float32'),
  }, {'trainer': {'dict_class': 'BatchTopKSAE'}}


def plain_llamascopium_files():
  return llamascopium_files('jumprelu', by_norm=True, out=OUT, is_folded=False)


FILES = {
  'saelens': saelens_files,
  'sparsify': sparsify_files,
  'gemma_scope2': gemma_scope2_files,
  'dictionary_learning': dictionary_learning_files,
  'llamascopium': plain_llamascopium_files,
}
ABSENT = object()
RESID = 'blocks.3.hook_resid_pre'
#: Keys by format, and values to try; True where the SAE must be read.
KEYS = {
  'saelens': {
    'architecture': [(ABSENT, True), ('standard', True), ('topk', False),
                     ('matching_pursuit', False), (3, False)],
    'activation_fn_str': [(ABSENT, True), ('relu', True), ('topk', False),
                          ('tanh-relu', False)],
    'activation_fn': [(ABSENT, True), (None, True), ('softplus', False)],
    'activation_fn_kwargs': [(ABSENT, True), ({}, True), ({'k': 3}, False),
                             ({'k': 3, 'a': 1}, False)],
    'k': [(ABSENT, True), (3, False), (7, False), ('x', False)],
    'apply_b_dec_to_input': [(ABSENT, True), (True, True), (False, True),
                             ('no', False)],
    'rescale_acts_by_decoder_norm': [(ABSENT, True), (True, True),
                                     (False, True)],
    'normalize_activations': [(ABSENT, True), (None, True), ('none', True),
                              (False, True), (True, False),
                              ('layer_norm', False)],
    'hook_head_index': [(ABSENT, True), (None, True), (2, False)],
    'hook_name': [(RESID, True), ('blocks.3.mlp.hook_pre', False)],
    'model_from_pretrained_kwargs': [
      (ABSENT, True), ({}, True), ({'center_writing_weights': False}, True),
      ({'center_writing_weights': True}, False), ({'scale': 2}, False),
      ({'fold_ln': True}, False),
    ],
    'finetuning_scaling_factor': [(ABSENT, True), (False, True), (True, True)],
    'lr': [(ABSENT, True), (1.0, True)],
    'd_sae': [(ABSENT, True), (M, True), (M + 1, False)],
    'gain': [(ABSENT, True), (2.0, False)],
  },
  'sparsify': {
    'activation': [(ABSENT, True), ('topk', True), ('groupmax', False)],
    'k': [(4, True), (6, True), (ABSENT, False), (0, False), (2.5, False)],
    'signed': [(ABSENT, True), (False, True), (True, False)],
    'transcode': [(ABSENT, True), (True, True), (False, True)],
    'multi_topk': [(ABSENT, True), (True, True)],
    'normalize_decoder': [(ABSENT, True), (False, True)],
    'skip_connection': [(ABSENT, True), (False, True), (True, False)],
    'num_latents': [(M, True), (0, False), (M - 1, False)],
    'expansion_factor': [(ABSENT, True), (3, True)],
    'gain': [(ABSENT, True), (2.0, False)],
  },
  'gemma_scope2': {
    'architecture': [('jump_relu', True), ('relu', False)],
    'affine_connection': [(ABSENT, True), (False, True), (True, False)],
    'l0': [(ABSENT, True), (7.5, True)],
    'gain': [(ABSENT, True), (2.0, False)],
  },
  'dictionary_learning': {
    'trainer.k': [(ABSENT, True), (3, True), (4, False)],
    'trainer.dict_size': [(ABSENT, True), (M, True), (M + 1, False)],
    'trainer.lr': [(ABSENT, True), (1.0, True)],
    'trainer.norm_factor': [(ABSENT, True), (2.0, False)],
    'trainer.dict_class': [('BatchTopKSAE', True), ('AutoEncoderTopK', True),
                           ('IdentityDict', False)],
    'buffer': [(ABSENT, True), ({'ctx_len': 128}, True)],
    'gain': [(ABSENT, True), (2.0, False)],
  },
  'llamascopium': {
    'act_fn': [('jumprelu', True), ('batchtopk', False), (ABSENT, False)],
    'norm_activation': [(ABSENT, True), ('inference', True),
                        ('token-wise', False)],
    'sparsity_include_decoder_norm': [(ABSENT, True), (True, True),
                                      (False, True)],
    'use_glu_encoder': [(ABSENT, True), (False, True), (True, False)],
    'use_decoder_bias': [(ABSENT, True), (True, True), (False, False)],
    'd_model': [(ABSENT, True), (D, True), (D + 1, False)],
    'expansion_factor': [(ABSENT, True), (M / D, True), (2.0, False)],
    'jumprelu_threshold_window': [(ABSENT, True), (4.0, True)],
    'gain': [(ABSENT, True), (2.0, False)],
  },
}  # fmt: skip


@pytest.mark.parametrize('name', KEYS)
@hypothesis.settings(
  max_examples=60,
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(data=strategies.data())
def test_each_key_is_computed_or_refused(name, data, tmp_path_factory):
  """A few keys drawn: as the library computes, or an error; no third way."""
  arrays, config = FILES[name]()
  keys = KEYS[name]
  chosen = data.draw(
    strategies.sets(strategies.sampled_from(sorted(keys)), max_size=3)
  )
  must_load = True
  if 'hook_name' in keys:
    config['hook_name'] = RESID
  for key in sorted(chosen):
    value, is_plain = data.draw(strategies.sampled_from(keys[key]))
    must_load &= is_plain
    *groups, last = key.split('.')
    inner = config
    for group in groups:
      inner = inner.setdefault(group, {})
    inner.pop(last, None)
    if value is not ABSENT:
      inner[last] = value
  folder = tmp_path_factory.mktemp(name)
  write_file(folder, arrays, config, name)
  try:
    formats.load(folder)
  except errors.InputError:
    assert not must_load, config
    return
  assert_reads_as_the_library(name, folder)


def test_every_format_has_keys():
  assert set(KEYS) == set(OTHERS) - {'gemma_scope'}  # which has no config
  assert all(
    any(not is_plain for _, is_plain in itertools.chain(*keys.values()))
    for keys in KEYS.values()
  )
