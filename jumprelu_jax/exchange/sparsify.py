"""sparsify's folders: sae.safetensors and cfg.json; k latents fire, always."""

from __future__ import annotations

import os
import pathlib
import re

import numpy as np

from jumprelu_jax import errors
from jumprelu_jax.exchange import details as details_lib
from jumprelu_jax.exchange import untrusted
from jumprelu_jax.exchange import weights
from jumprelu_jax.lm import hf_raw
from jumprelu_jax.sae import released

WEIGHTS, CONFIG = 'sae.safetensors', 'cfg.json'
_SHAPES = {
  'encoder.weight': 'MD', 'encoder.bias': 'M', 'W_dec': 'MD', 'b_dec': 'D',
}  # fmt: skip
# What its class of configs has for keys that are absent.
_DEFAULTS = {
  'activation': 'topk', 'expansion_factor': 32, 'num_latents': 0, 'k': 32,
  'skip_connection': False, 'transcode': False,
}  # fmt: skip
# Of training alone.
_IDLE = ('normalize_decoder', 'multi_topk')
# Hookpoints are modules, whose outputs they are: of a block the residual stream
# after it. A transcoder reads the module's input.
_PLACES = {
  'resid_post': r'(?:layers|h)\.(\d{1,9})',
  'mlp_out': r'(?:layers|h)\.(\d{1,9})\.mlp',
  'attn_out': r'(?:layers|h)\.(\d{1,9})\.(?:self_attn|attention|attn)',
}
_INPUTS = {'resid_post': 'resid_pre', 'mlp_out': 'mlp_in', 'attn_out': ''}


def read(
  folder: pathlib.Path,
) -> tuple[released.TopKSAE, details_lib.Details]:
  """Reads a hookpoint's folder; InputError if damaged, or grouping latents."""
  path, config = folder / WEIGHTS, untrusted.read_json(folder / CONFIG)
  raw = hf_raw.Raw(config, str(folder / CONFIG), _DEFAULTS)
  raw.require('activation', 'topk')
  raw.require('signed', False)  # of an older version: k by absolute value
  is_transcoder = raw.get('transcode', bool)
  shapes = dict(_SHAPES)
  if raw.get('skip_connection', bool):
    shapes['W_skip'] = 'DD'
  found = weights.take(path, untrusted.read_safetensors, shapes)
  M, D = found['encoder.weight'].shape
  raw.require('d_in', D)
  said = raw.get('num_latents', int) or D * raw.get('expansion_factor', int)
  raw.read.add('expansion_factor')
  if said != M:
    raise errors.InputError(
      f'{folder / CONFIG}: num_latents={config.get("num_latents")} and '
      f'expansion_factor={config.get("expansion_factor")} say {said} latents; '
      f'the weights have {M}.'
    )
  k = raw.get('k', int)
  raw.refuse_others(_IDLE)
  skip, b_dec = found.get('W_skip'), found['b_dec']
  sae = weights.build(
    found['encoder.weight'].T,
    found['encoder.bias'],
    found['W_dec'],
    b_dec,
    k,
    subtracts=None if is_transcoder else b_dec,
    W_skip=None if skip is None else skip.T,
  )
  return sae, _details(folder, config, is_transcoder)


def write(
  sae: released.Released,
  details: details_lib.Details,
  folder: str | os.PathLike,
) -> None:
  """Writes a hookpoint's folder; InputError for thresholds."""
  if not isinstance(sae, released.TopKSAE):
    raise weights.refuse('sparsify', 'thresholds: k latents always fire there')
  if sae.W_dec.shape[1] != sae.W_enc.shape[0]:
    raise weights.refuse('sparsify', 'inputs and outputs of two sizes')
  arrays = weights.arrays_of(sae)
  is_transcoder = bool(details.target_site) or sae.W_skip is not None
  bias_M = arrays['b_enc'].astype('float64')
  if not is_transcoder:  # what is subtracted from the input is given back
    bias_M = bias_M + arrays['b_dec'].astype('float64') @ arrays['W_enc']
  tensors = {
    'encoder.weight': np.ascontiguousarray(arrays['W_enc'].T),
    'encoder.bias': bias_M.astype('float32'),
    'W_dec': arrays['W_dec'],
    'b_dec': arrays['b_dec'],
  }
  if sae.W_skip is not None:
    tensors['W_skip'] = np.ascontiguousarray(arrays['W_skip'].T)
  D, M = arrays['W_enc'].shape
  config = {
    'activation': 'topk',
    'expansion_factor': max(1, M // D),
    'normalize_decoder': True,
    'num_latents': M,
    'k': sae.k,
    'multi_topk': False,
    'skip_connection': sae.W_skip is not None,
    'transcode': is_transcoder,
    'd_in': D,
  }
  weights.write_safetensors(folder, WEIGHTS, tensors, CONFIG, config)


def _details(folder, config, is_transcoder):
  site, layer = '', -1
  for name, pattern in _PLACES.items():
    match = re.search(rf'(?:^|\.){pattern}$', folder.resolve().name)
    if match:
      site, layer = name, int(match[1])
  return details_lib.Details(
    site=_INPUTS.get(site, '') if is_transcoder else site,
    layer=layer,
    target_site=site if is_transcoder else '',
    target_layer=layer if is_transcoder else -1,
    trained_as='topk',
    other=config,
  )
