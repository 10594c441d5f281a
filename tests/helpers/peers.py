"""What other libraries compute of a folder of theirs, in float64 NumPy.

Written from their sources: SAELens 6.54.12, llamascopium 2.0.0b34,
dictionary_learning 0.1.0, sparsify 1.3.3, and Gemma Scope's loaders.
"""

import json

import numpy as np
import safetensors.numpy


def run(name, folder, x_BD):
  """Returns (f, y) of a folder of a format."""
  return _PEERS[name](folder, x_BD.astype('float64'))


def top_k(pre, k, by=None):
  """ReLU of the k largest, ranked by `by` if that is given."""
  by = pre if by is None else by
  chosen = np.argsort(-by, axis=1, kind='stable')[:, :k]
  f = np.zeros_like(pre)
  values = np.maximum(np.take_along_axis(pre, chosen, 1), 0)
  np.put_along_axis(f, chosen, values, 1)
  return f


def jump(pre, threshold):
  return np.where(pre > threshold, np.maximum(pre, 0), 0)


def _arrays(path):
  if path.suffix == '.npz':
    with np.load(path) as file:
      arrays = dict(file)
  elif path.suffix == '.pt':
    import torch

    arrays = {k: v.numpy() for k, v in torch.load(path).items()}
  else:
    arrays = safetensors.numpy.load_file(path)
  return {k: np.asarray(v, 'float64') for k, v in arrays.items()}


def _gemma_scope(folder, x):
  a = _arrays(folder / 'params.npz')
  f = jump(x @ a['W_enc'] + a['b_enc'], a['threshold'])
  return f, f @ a['W_dec'] + a['b_dec']


def _gemma_scope2(folder, x):
  a = _arrays(folder / 'params.safetensors')
  f = jump(x @ a['w_enc'] + a['b_enc'], a['threshold'])
  y = f @ a['w_dec'] + a['b_dec']
  if 'affine_skip_connection' in a:
    y = y + x @ a['affine_skip_connection']
  return f, y


def _saelens(folder, x):
  a = _arrays(folder / 'sae_weights.safetensors')
  config = json.loads((folder / 'cfg.json').read_text())
  version = config.get('sae_lens_version') or config.get('metadata', {}).get(
    'sae_lens_version'
  )
  architecture, k = config.get('architecture', 'standard'), config.get('k', 100)
  if not version:  # as `handle_pre_6_0_config`
    kwargs = config.get('activation_fn_kwargs') or {}
    activation = config.get('activation_fn_str', config.get('activation_fn'))
    if activation == 'topk' and kwargs.get('k') is not None:
      architecture = 'topk'
    if architecture == 'topk' and 'activation_fn_kwargs' in config:
      k = kwargs['k']
  is_transcoder = 'transcoder' in architecture
  h = x
  if config.get('apply_b_dec_to_input', not is_transcoder):
    h = x - a['b_dec']
  if (config.get('model_from_pretrained_kwargs') or {}).get(
    'center_writing_weights'
  ):
    # Its model's residual stream has no mean.
    h = h - x.mean(1, keepdims=True)
  h = h @ a['W_enc']
  if architecture == 'gated':
    magnitude = h * np.exp(a['r_mag']) + a['b_mag']
    f = (h + a['b_gate'] > 0) * np.maximum(magnitude, 0)
    return f, f @ a['W_dec'] + a['b_dec']
  h = h + a['b_enc']
  W_dec = a['W_dec']
  if architecture == 'topk':
    if config.get('rescale_acts_by_decoder_norm'):
      norm = np.linalg.norm(W_dec, axis=1)
      h, W_dec = h * norm, W_dec / norm[:, None]
    f = top_k(h, k)
  else:
    threshold = a.get('threshold', 0.0)
    if 'log_threshold' in a:
      threshold = np.exp(a['log_threshold'])
    f = jump(h, threshold)
  y = f @ W_dec + a['b_dec']
  return f, y + x @ a['W_skip'].T if 'W_skip' in a else y


def _llamascopium(folder, x):
  """Its f is of normalised activations; here it is divided by their factor."""
  a = _arrays(folder / 'sae_weights.safetensors')
  config = json.loads((folder / 'config.json').read_text())
  into = out = 1.0
  if config.get('norm_activation', 'dataset-wise') == 'dataset-wise':
    into, out = (
      np.sqrt(x.shape[1])
      / a[f'dataset_average_activation_norm.{config[f"hook_point_{end}"]}']
      for end in ('in', 'out')
    )
  pre = x * into @ a['W_E'] + a['b_E']
  norm = np.ones(len(a['W_D']))
  if config.get('sparsity_include_decoder_norm', True):
    norm = np.linalg.norm(a['W_D'], axis=1)
  activation = config.get('act_fn', 'relu')
  if activation == 'topk':
    f = top_k(pre, config.get('top_k', 50), by=pre * norm)
  elif activation == 'jumprelu':
    theta = np.exp(a['activation_function.log_jumprelu_threshold'])
    f = np.where(pre * norm > theta, pre, 0)
  else:
    f = np.maximum(pre, 0)
  y = (f @ a['W_D'] + a.get('b_D', 0)) / out
  if activation == 'topk' and config.get('sparsity_include_decoder_norm', True):
    f = f * norm / out * into  # ours has rows of unit norm then
  return f / into, y


def _sparsify(folder, x):
  a = _arrays(folder / 'sae.safetensors')
  config = json.loads((folder / 'cfg.json').read_text())
  h = x if config.get('transcode') else x - a['b_dec']
  pre = np.maximum(h @ a['encoder.weight'].T + a['encoder.bias'], 0)
  f = top_k(pre, config.get('k', 32))
  y = f @ a['W_dec'] + a['b_dec']
  return f, y + x @ a['W_skip'].T if 'W_skip' in a else y


def _dictionary_learning(folder, x):
  a = _arrays(folder / 'ae.pt')
  name = json.loads((folder / 'config.json').read_text())['trainer'][
    'dict_class'
  ]
  if name == 'JumpReluAutoEncoder':
    f = jump(x @ a['W_enc'] + a['b_enc'], a['threshold'])
    return f, f @ a['W_dec'] + a['b_dec']
  bias = a['bias' if name == 'AutoEncoder' else 'b_dec']
  pre = (x - bias) @ a['encoder.weight'].T + a['encoder.bias']
  if name == 'AutoEncoderTopK':
    f = top_k(pre, int(a['k']))
  else:
    f = jump(pre, a.get('threshold', 0.0))
  return f, f @ a['decoder.weight'].T + bias


_PEERS = {
  'gemma_scope': _gemma_scope,
  'gemma_scope2': _gemma_scope2,
  'saelens': _saelens,
  'llamascopium': _llamascopium,
  'sparsify': _sparsify,
  'dictionary_learning': _dictionary_learning,
}
