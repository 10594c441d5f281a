"""SAELens' folders: cfg.json and sae_weights.safetensors.

`saelens_config` reads cfg.json. What is trained as BatchTopK is a JumpReLU
there.
"""

from __future__ import annotations

import os
import pathlib

import numpy as np

from jumprelu_jax import errors
from jumprelu_jax.exchange import details as details_lib
from jumprelu_jax.exchange import saelens_config
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
# What files of other versions have besides.
_OLD = {'log_threshold': 'M', 'scaling_factor': '*'}


def read(
  folder: pathlib.Path,
) -> tuple[released.Released, details_lib.Details]:
  """Reads a folder.

  Raises:
    errors.InputError: it is damaged, of an architecture that is not known, or
      normalises activations token by token, which no folded SAE can; or a key
      of its config is not known.
  """
  path, config = folder / WEIGHTS, untrusted.read_json(folder / CONFIG)
  raw = saelens_config.read(config, str(folder / CONFIG))
  architecture = saelens_config.read_architecture(raw, _SHAPES)
  k = saelens_config.read_k(raw, architecture == 'topk')
  saelens_config.check_place(raw)
  shapes = {**_SHAPES[architecture], **_OLD}
  optional = {*_OLD, 'threshold'} if 'threshold' in shapes else set(_OLD)
  found = weights.take(path, untrusted.read_safetensors, shapes, optional)
  _check_sizes(raw, found, architecture)
  _unfold_old(raw, found, architecture)
  is_transcoder = 'transcoder' in architecture
  subtracts = raw.get('apply_b_dec_to_input', bool) and not is_transcoder
  if is_transcoder:  # as SAELens refuses it
    raw.require('apply_b_dec_to_input', False)
  by_norm = raw.get('rescale_acts_by_decoder_norm', bool)
  places = saelens_config.read_places(raw)
  is_centred = saelens_config.reads_centred(
    raw, places[0][0], is_transcoder=is_transcoder
  )
  saelens_config.refuse_others(raw)
  sae = _build(
    architecture,
    found,
    k,
    subtracts=subtracts,
    by_norm=by_norm and architecture == 'topk',
    is_centred=is_centred,
  )
  return sae, _details(raw, config, architecture, places)


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


def _check_sizes(raw, found, architecture):
  """Raises InputError unless the config's sizes are the weights'."""
  raw.require('d_in', found['W_enc'].shape[0])
  raw.require('d_sae', found['W_enc'].shape[1])
  raw.require('d_out', found['W_dec'].shape[1])
  if 'transcoder' not in architecture and len(set(_outer(found))) > 1:
    raise errors.InputError(
      f'{raw.where}: a {architecture} SAE has one size of activations; the '
      f'weights have {_outer(found)}.'
    )


def _outer(found):
  return found['W_enc'].shape[0], found['W_dec'].shape[1]


def _unfold_old(raw, found, architecture):
  """Turns what older versions wrote into what today's do."""
  log = found.pop('log_threshold', None)
  if 'threshold' in _SHAPES[architecture]:
    if (log is None) == ('threshold' not in found):
      raise weights.wanted(raw.where, 'either threshold or log_threshold')
    if log is not None:
      found['threshold'] = np.exp(log.astype('float64'))
  elif log is not None:
    raise weights.wanted(raw.where, f'no log_threshold of a {architecture} SAE')
  scale = found.pop('scaling_factor', None)
  is_used = raw.get('finetuning_scaling_factor', bool)
  if scale is None or np.allclose(scale, 1):
    return
  if not is_used:
    raise weights.wanted(
      raw.where, 'finetuning_scaling_factor=true beside scaling_factor'
    )
  found['W_dec'] = np.reshape(scale, (-1, 1)) * found['W_dec']


def _build(architecture, found, k, *, subtracts, by_norm, is_centred):
  """Returns the SAE of checked arrays."""
  rule, skip = found.pop('threshold', 0.0), found.pop('W_skip', None)
  if architecture == 'topk':
    rule = k
  if architecture == 'gated':
    gates = [found.pop(name) for name in ('b_gate', 'r_mag', 'b_mag')]
    found['W_enc'], found['b_enc'], rule = weights.gated(found['W_enc'], *gates)
  subtracted = found['b_dec'] if subtracts else None
  if by_norm:
    found = weights.unit_rows(**found)
  if subtracted is not None:
    shift = subtracted.astype('float64') @ found['W_enc']
    found['b_enc'] = found['b_enc'] - shift
  if is_centred:
    # (x - mean x) W is x (W - its columns' means).
    W_enc = found['W_enc'].astype('float64')
    found['W_enc'] = W_enc - W_enc.mean(axis=0)
  return weights.build(
    **{name: np.asarray(a, 'float32') for name, a in found.items()},
    rule=rule,
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


def _details(raw, config, architecture, places):
  (site, layer), (target, target_layer) = places
  if 'transcoder' not in architecture and target == site:
    target, target_layer = '', -1
  known = raw.values
  trained_as = details_lib.text(known.get('training_architecture'))
  return details_lib.Details(
    model=details_lib.text(known.get('model_name')),
    site=site,
    layer=layer,
    target_site=target,
    target_layer=target_layer,
    context_length=details_lib.number(known.get('context_size'), 0),
    trained_as=trained_as or architecture,
    l0=details_lib.positive(known.get('l0')),
    other=config,
  )
