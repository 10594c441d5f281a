"""llamascopium's folders: config.json and sae_weights.safetensors."""

from __future__ import annotations

import math
import os
import pathlib

import numpy as np

from jumprelu_jax import errors
from jumprelu_jax.exchange import details as details_lib
from jumprelu_jax.exchange import untrusted
from jumprelu_jax.exchange import weights
from jumprelu_jax.sae import released

WEIGHTS, CONFIG = 'sae_weights.safetensors', 'config.json'
_MAPS = {'W_E': 'DM', 'b_E': 'M', 'W_D': 'MD', 'b_D': 'D'}
_THRESHOLD = 'activation_function.log_jumprelu_threshold'
_NORM = 'dataset_average_activation_norm.'
_ACTIVATIONS = ('relu', 'jumprelu', 'topk')


def read(
  folder: pathlib.Path,
) -> tuple[released.Released, details_lib.Details]:
  """Reads a folder.

  Raises:
    errors.InputError: it is damaged, or is none of one linear encoder with a
      ReLU, thresholds, or k, on activations as they are or divided by one
      number.
  """
  config, path = untrusted.read_json(folder / CONFIG), folder / WEIGHTS
  activation = config.get('act_fn', 'relu')
  norm = config.get('norm_activation', 'dataset-wise')
  for what, is_known in (
    (f'sae_type {config.get("sae_type")!r}', config.get('sae_type') == 'sae'),
    (f'act_fn {activation!r}', activation in _ACTIVATIONS),
    ('use_glu_encoder', not config.get('use_glu_encoder')),
    (f'norm_activation {norm!r}', norm in ('inference', 'dataset-wise')),
  ):
    if not is_known:
      raise errors.InputError(
        f'{folder / CONFIG}: {what} is not read; expected an SAE with act_fn '
        f'{", ".join(_ACTIVATIONS)} and norm_activation inference or '
        'dataset-wise.'
      )
  arrays = untrusted.read_safetensors(path)
  norms = {k: arrays.pop(k) for k in list(arrays) if k.startswith(_NORM)}
  shapes = dict(_MAPS)
  if activation == 'jumprelu':
    shapes[_THRESHOLD] = 'M'
  optional = () if config.get('use_decoder_bias', True) else ('b_D',)
  found = weights.take(path, arrays, shapes, optional)
  found = _normalised(config, norm, norms, found)
  return _build(config, activation, found), _details(config, activation)


def write(
  sae: released.Released,
  details: details_lib.Details,
  folder: str | os.PathLike,
) -> None:
  """Writes a folder in its mode for inference; InputError for a skip."""
  if sae.W_skip is not None:
    raise weights.refuse('llamascopium', 'a skip connection')
  if sae.W_dec.shape[1] != sae.W_enc.shape[0]:
    raise weights.refuse('llamascopium', 'inputs and outputs of two sizes')
  arrays = weights.arrays_of(sae)
  D, M = arrays['W_enc'].shape
  has_k = isinstance(sae, released.TopKSAE)
  hook = details_lib.hook_of(details.site, details.layer)
  target = details_lib.hook_of(details.target_site, details.target_layer)
  config = {
    'sae_type': 'sae',
    'd_model': D,
    'expansion_factor': M / D,
    'use_decoder_bias': True,
    'act_fn': 'topk' if has_k else 'jumprelu',
    'norm_activation': 'inference',
    'sparsity_include_decoder_norm': False,
    'top_k': sae.k if has_k else 50,
    'use_triton_kernel': False,
    'sparsity_threshold_for_triton_spmm_kernel': 0.996,
    'jumprelu_threshold_window': 2.0,
    'hook_point_in': hook,
    'hook_point_out': target or hook,
    'use_glu_encoder': False,
  }
  tensors = {
    'W_E': arrays['W_enc'],
    'b_E': arrays['b_enc'],
    'W_D': arrays['W_dec'],
    'b_D': arrays['b_dec'],
  }
  if not has_k:
    with np.errstate(divide='ignore'):  # of a ReLU's 0
      tensors[_THRESHOLD] = np.log(np.maximum(arrays['threshold'], 0))
  weights.write_safetensors(folder, WEIGHTS, tensors, CONFIG, config)


def _normalised(config, norm, norms, found):
  """Returns the arrays for raw activations; folds a dataset's mean norm."""
  if norm == 'inference':
    return found
  factors = []
  for end in ('in', 'out'):
    mean = norms.get(f'{_NORM}{config.get(f"hook_point_{end}")}')
    if mean is None or np.ndim(mean) or not mean > 0:
      raise errors.InputError(
        f'norm_activation is dataset-wise, but {_NORM}HOOK of '
        f'hook_point_{end} is not a positive number among the weights.'
      )
    factors.append(math.sqrt(len(found['W_E'])) / float(mean))
  into, out = factors
  found['b_E'] = found['b_E'] / into
  found['W_D'] = found['W_D'] * (into / out)
  if _THRESHOLD in found:
    found[_THRESHOLD] = found[_THRESHOLD] - math.log(into)
  if 'b_D' in found:
    found['b_D'] = found['b_D'] / out
  return found


def _build(config, activation, found):
  b_D = found.get('b_D', np.zeros(found['W_D'].shape[1], np.float32))
  maps = {
    'W_enc': found['W_E'],
    'b_enc': found['b_E'],
    'W_dec': found['W_D'],
    'b_dec': b_D,
  }
  rule = 0.0
  if activation == 'jumprelu':
    rule = np.exp(found[_THRESHOLD].astype('float64'))
  norm_M = np.linalg.norm(maps['W_dec'], axis=1)
  if config.get('sparsity_include_decoder_norm', True):
    if activation == 'topk':
      maps = weights.unit_rows(**maps)
    else:  # the threshold is one of activations times the row's norm
      rule = rule / np.where(norm_M > 0, norm_M, 1)
  if activation == 'topk':
    rule = int(config.get('top_k', 0))
  return weights.build(**maps, rule=rule)


def _details(config, activation):
  site, layer = details_lib.site_of(str(config.get('hook_point_in') or ''))
  target, target_layer = details_lib.site_of(
    str(config.get('hook_point_out') or '')
  )
  is_transcoder = bool(target) and (target, target_layer) != (site, layer)
  return details_lib.Details(
    site=site,
    layer=layer,
    target_site=target if is_transcoder else '',
    target_layer=target_layer if is_transcoder else -1,
    trained_as=activation,
    other=config,
  )
