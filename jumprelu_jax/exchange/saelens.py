"""SAELens' folders: cfg.json and sae_weights.safetensors.

Of version 6, and of those before, which have no metadata and subtract b_dec
unless they say otherwise. What is trained as BatchTopK is there a JumpReLU.
"""

from __future__ import annotations

import os
import pathlib

import numpy as np

from jumprelu_jax import errors
from jumprelu_jax.exchange import details as details_lib
from jumprelu_jax.exchange import untrusted
from jumprelu_jax.exchange import weights
from jumprelu_jax.sae import released

WEIGHTS, CONFIG, SPARSITY = (
  'sae_weights.safetensors',
  'cfg.json',
  'sparsity.safetensors',
)
# Which version of their files this is; without one it is read as of before 6.
_VERSION = '6.54.12'
_MAPS = {'W_enc': 'DM', 'b_enc': 'M', 'W_dec': 'ME', 'b_dec': 'E'}
_THRESHOLD = {**_MAPS, 'threshold': 'M'}
_SKIP = {'W_skip': 'ED'}
_SHAPES = {
  'standard': _MAPS,
  'jumprelu': _THRESHOLD,
  'topk': _MAPS,
  'gated': {
    'W_enc': 'DM', 'W_dec': 'ME', 'b_dec': 'E', 'b_gate': 'M', 'b_mag': 'M',
    'r_mag': 'M',
  },
  'transcoder': _MAPS,
  'skip_transcoder': {**_MAPS, **_SKIP},
  'jumprelu_transcoder': _THRESHOLD,
  'jumprelu_skip_transcoder': {**_THRESHOLD, **_SKIP},
}  # fmt: skip
# What files of other versions have beside these.
_OPTIONAL = {'log_threshold': 'M', 'scaling_factor': 'M'}


def read(
  folder: pathlib.Path,
) -> tuple[released.Released, details_lib.Details]:
  """Reads a folder.

  Raises:
    errors.InputError: it is damaged, of an architecture that is not known, or
      normalises activations token by token, which no folded SAE can.
  """
  path, config = folder / WEIGHTS, untrusted.read_json(folder / CONFIG)
  architecture = _architecture_of(folder, config)
  arrays = untrusted.read_safetensors(path)
  if 'log_threshold' in arrays and 'threshold' not in arrays:
    arrays['threshold'] = np.exp(arrays.pop('log_threshold').astype('float64'))
  scale = arrays.pop('scaling_factor', None)
  found = weights.take(path, arrays, _SHAPES[architecture])
  _check_normalisation(folder, config)
  if scale is not None:
    found['W_dec'] = np.reshape(scale, (-1, 1)) * found['W_dec']
  return _build(architecture, config, found), _details(config, architecture)


def write(
  sae: released.Released,
  details: details_lib.Details,
  folder: str | os.PathLike,
) -> None:
  """Writes a folder that SAELens 6 loads as it is."""
  arrays = weights.arrays_of(sae)
  if 'W_skip' in arrays:
    arrays['W_skip'] = np.ascontiguousarray(arrays['W_skip'].T)
  is_transcoder = bool(details.target_site) or 'W_skip' in arrays
  has_k = isinstance(sae, released.TopKSAE)
  if is_transcoder and has_k:
    raise weights.refuse('saelens', 'a transcoder with k')
  architecture = 'topk' if has_k else 'jumprelu'
  if is_transcoder:
    skip = '_skip' if 'W_skip' in arrays else ''
    architecture = f'jumprelu{skip}_transcoder'
  config = {
    'architecture': architecture,
    'd_in': sae.W_enc.shape[0],
    'd_sae': sae.W_enc.shape[1],
    'dtype': 'float32',
    'device': 'cpu',
    'apply_b_dec_to_input': False,
    'normalize_activations': 'none',
    'reshape_activations': 'hook_z' if details.site == 'attn_z' else 'none',
    'metadata': _metadata(details),
  }
  if has_k:
    config |= {'k': sae.k, 'rescale_acts_by_decoder_norm': False}
  if is_transcoder:
    config['d_out'] = sae.W_dec.shape[1]
  weights.write_safetensors(folder, WEIGHTS, arrays, CONFIG, config)


def _architecture_of(folder, config):
  name = config.get('architecture', 'standard')
  if config.get('activation_fn_str', config.get('activation_fn')) == 'topk':
    name = 'topk'  # before version 6
  if name not in _SHAPES:
    raise errors.InputError(
      f'{folder / CONFIG}: architecture {name!r} is not read; expected one of '
      f'{", ".join(_SHAPES)}.'
    )
  return name


def _check_normalisation(folder, config):
  how = config.get('normalize_activations') or 'none'
  if how != 'none':
    raise errors.InputError(
      f'{folder / CONFIG}: normalize_activations={how!r} is not folded into '
      'the weights; save it from SAELens with the scale folded (its trainer '
      'does so at the end), or with none.'
    )


def _build(architecture, config, found):
  """Returns the SAE of checked arrays."""
  is_transcoder = 'transcoder' in architecture
  subtracts = not is_transcoder and config.get('apply_b_dec_to_input', True)
  rule, skip = found.pop('threshold', 0.0), found.pop('W_skip', None)
  if architecture == 'topk':
    kwargs = config.get('activation_fn_kwargs') or {}  # before version 6
    rule = int(config.get('k', kwargs.get('k', 0)))
  if architecture == 'gated':
    gates = [found.pop(name) for name in ('b_gate', 'r_mag', 'b_mag')]
    found['W_enc'], found['b_enc'], rule = weights.gated(found['W_enc'], *gates)
  if config.get('rescale_acts_by_decoder_norm'):
    found = weights.unit_rows(**found)
  return weights.build(
    **found,
    rule=rule,
    subtracts=found['b_dec'] if subtracts else None,
    W_skip=None if skip is None else skip.T,
  )


def _metadata(details):
  metadata = {
    'sae_lens_version': _VERSION,
    'sae_lens_training_version': None,
    'model_name': details.model,
    'hook_name': details_lib.hook_of(details.site, details.layer),
    'hook_head_index': None,
    'context_size': details.context_length or None,
    'prepend_bos': True,
    'seqpos_slice': [None],
    'training_architecture': details.trained_as or None,
    'l0': details.l0,
  }
  if details.target_site:
    metadata['hook_name_out'] = details_lib.hook_of(
      details.target_site, details.target_layer
    )
  return metadata


def _details(config, architecture):
  known = config.get('metadata') or config
  site, layer = details_lib.site_of(str(known.get('hook_name') or ''))
  target, target_layer = details_lib.site_of(
    str(known.get('hook_name_out') or '')
  )
  l0 = known.get('l0')
  return details_lib.Details(
    model=str(known.get('model_name') or ''),
    site=site,
    layer=layer,
    target_site=target,
    target_layer=target_layer,
    context_length=int(known.get('context_size') or 0),
    trained_as=str(known.get('training_architecture') or architecture),
    l0=float(l0) if isinstance(l0, int | float) else None,
    other=config,
  )
