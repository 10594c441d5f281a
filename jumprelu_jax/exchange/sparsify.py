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
from jumprelu_jax.sae import released

WEIGHTS, CONFIG = 'sae.safetensors', 'cfg.json'
_SHAPES = {
  'encoder.weight': 'MD', 'encoder.bias': 'M', 'W_dec': 'MD', 'b_dec': 'D',
  'W_skip': 'DD',
}  # fmt: skip
# Hookpoints are modules: a block's output is the residual stream after it.
_PLACES = {'resid_post': 'layers.{}', 'mlp_out': 'layers.{}.mlp'}


def read(
  folder: pathlib.Path,
) -> tuple[released.TopKSAE, details_lib.Details]:
  """Reads a hookpoint's folder; InputError if damaged, or grouping latents."""
  config, path = untrusted.read_json(folder / CONFIG), folder / WEIGHTS
  if config.get('activation', 'topk') != 'topk':
    raise errors.InputError(
      f'{folder / CONFIG}: activation {config["activation"]!r} is not read; '
      'expected topk.'
    )
  arrays = untrusted.read_safetensors(path)
  optional = () if config.get('skip_connection') else ('W_skip',)
  found = weights.take(path, arrays, _SHAPES, optional)
  is_transcoder = bool(config.get('transcode'))
  skip = found.get('W_skip')
  W_enc, b_enc, b_dec = (
    found['encoder.weight'].T,
    found['encoder.bias'],
    found['b_dec'],
  )
  sae = weights.build(
    W_enc,
    b_enc,
    found['W_dec'],
    b_dec,
    int(config.get('k', 0)),
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
    wanted = re.escape(pattern).replace(r'\{\}', r'(\d+)')
    match = re.search(rf'(?:^|\.){wanted}$', folder.resolve().name)
    if match:
      site, layer = name, int(match[1])
  return details_lib.Details(
    site='mlp_in' if is_transcoder and site == 'mlp_out' else site,
    layer=layer,
    target_site=site if is_transcoder else '',
    target_layer=layer if is_transcoder else -1,
    trained_as='topk',
    other=config,
  )
