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
from jumprelu_jax.lm import hf_raw
from jumprelu_jax.sae import released

WEIGHTS, CONFIG = 'sae_weights.safetensors', 'config.json'
_MAPS = {'W_E': 'DM', 'b_E': 'M', 'W_D': 'MD', 'b_D': 'D'}
_THRESHOLD = 'activation_function.log_jumprelu_threshold'
_NORM = 'dataset_average_activation_norm.'
_ACTIVATIONS = ('relu', 'jumprelu', 'topk')
# What its class of configs has for keys that are absent.
_DEFAULTS = {
  'use_decoder_bias': True,
  'act_fn': 'relu',
  'norm_activation': 'dataset-wise',
  'sparsity_include_decoder_norm': True,
  'top_k': 50,
  'use_glu_encoder': False,
}
# Of training, and of how products are computed.
_IDLE = (
  'sae_type', 'use_triton_kernel', 'sparsity_threshold_for_triton_spmm_kernel',
  'jumprelu_threshold_window', 'device', 'dtype', 'hook_point_in',
  'hook_point_out',
)  # fmt: skip


def read(
  folder: pathlib.Path,
) -> tuple[released.Released, details_lib.Details]:
  """Reads a folder.

  Raises:
    errors.InputError: it is damaged, or is none of one linear encoder with a
      ReLU, thresholds, or k, on activations as they are or divided by one
      number.
  """
  path, config = folder / WEIGHTS, untrusted.read_json(folder / CONFIG)
  raw = hf_raw.Raw(config, str(folder / CONFIG), _DEFAULTS)
  activation = raw.get('act_fn', str)
  norm = raw.get('norm_activation', str)
  for what, is_known in (
    (f'sae_type {config.get("sae_type")!r}', config.get('sae_type') == 'sae'),
    (f'act_fn {activation!r}', activation in _ACTIVATIONS),
    ('use_glu_encoder', not raw.get('use_glu_encoder', bool)),
    (f'norm_activation {norm!r}', norm in ('inference', 'dataset-wise')),
  ):
    if not is_known:
      raise errors.InputError(
        f'{folder / CONFIG}: {what} is not read; expected an SAE with act_fn '
        f'{", ".join(_ACTIVATIONS)} and norm_activation inference or '
        'dataset-wise.'
      )
  shapes = dict(_MAPS)
  if activation == 'jumprelu':
    shapes[_THRESHOLD] = 'M'
  if not raw.get('use_decoder_bias', bool):
    del shapes['b_D']
  norms = {}

  def read_all(path, check):
    def check_all(headers):
      # Mean norms are of any hook.
      norms.update(dict.fromkeys(n for n in headers if n.startswith(_NORM)))
      shapes.update(dict.fromkeys(norms, ''))
      check(headers)

    return untrusted.read_safetensors(path, check_all)

  found = weights.take(path, read_all, shapes)
  norms = {name: found.pop(name) for name in norms}
  D, M = found['W_E'].shape
  raw.require('d_model', D)
  factor = raw.get('expansion_factor', float, M / D)
  if int(D * factor) != M:
    raise errors.InputError(
      f'{folder / CONFIG}: expansion_factor={factor} of {D} are not the {M} '
      'latents of the weights.'
    )
  by_norm = raw.get('sparsity_include_decoder_norm', bool)
  k = raw.get('top_k', int)
  raw.refuse_others(_IDLE)
  factors = _factors(config, norm, norms, D)
  sae = _build(activation, by_norm, k, found, *factors)
  return sae, _details(config, activation)


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
    'expansion_factor': _ratio(M, D),
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


def _ratio(M, D):
  """Returns M / D, of which D times it, cut to an integer, is M."""
  return M / D if int(D * (M / D)) == M else math.nextafter(M / D, math.inf)


def _factors(config, norm, norms, D):
  """Returns what inputs and targets are multiplied by before they are used."""
  if norm == 'inference':
    return 1.0, 1.0
  factors = []
  for end in ('in', 'out'):
    mean = norms.get(f'{_NORM}{config.get(f"hook_point_{end}")}')
    if mean is None or not mean > 0:
      raise errors.InputError(
        f'norm_activation is dataset-wise, but {_NORM}HOOK of '
        f'hook_point_{end} is not a positive number among the weights.'
      )
    factors.append(math.sqrt(D) / float(mean))
  return factors


def _build(activation, by_norm, k, found, into, out):
  """Returns the SAE of checked arrays, for raw activations.

  It computes z = into x W_E + b_E, f = z where z times the norm of the row of
  W_D is above the threshold (or among the k largest), and (f W_D + b_D) / out;
  our f is its f / into. The norm is that of W_D as it is in the file.
  """
  W_D = found['W_D'].astype('float64')
  norm_M = np.linalg.norm(W_D, axis=1) if by_norm else np.ones(len(W_D))
  maps = {
    'W_enc': found['W_E'],
    'b_enc': (found['b_E'] / into).astype('float32'),
    'W_dec': (W_D * (into / out)).astype('float32'),
    'b_dec': np.zeros(W_D.shape[1], 'float32'),
  }
  if 'b_D' in found:
    maps['b_dec'] = (found['b_D'] / out).astype('float32')
  if activation == 'topk':
    return weights.build(
      **(weights.unit_rows(**maps) if by_norm else maps), rule=k
    )
  theta_M = np.zeros(len(W_D))
  if activation == 'jumprelu':
    theta_M = np.exp(found[_THRESHOLD].astype('float64'))
  with np.errstate(divide='ignore', invalid='ignore'):
    # A row of zeros is above no threshold.
    rule_M = np.where(norm_M > 0, theta_M / (norm_M * into), np.inf)
  return weights.build(**maps, rule=rule_M)


def _details(config, activation):
  site, layer = details_lib.site_of(
    details_lib.text(config.get('hook_point_in'))
  )
  target, target_layer = details_lib.site_of(
    details_lib.text(config.get('hook_point_out'))
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
