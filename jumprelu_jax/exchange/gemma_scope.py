"""Gemma Scope's files: params.npz of the first, safetensors of the second.

  google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71/params.npz
  google/gemma-scope-2-1b-pt/resid_post/layer_13_width_16k_l0_medium/
      params.safetensors, config.json

Nothing is subtracted from the input, and nothing is normalised. The first knows
an SAE only by where it lies.
"""

from __future__ import annotations

import os
import pathlib
import re

import numpy as np

from jumprelu_jax import whole
from jumprelu_jax.exchange import details as details_lib
from jumprelu_jax.exchange import untrusted
from jumprelu_jax.exchange import weights
from jumprelu_jax.lm import hf_raw
from jumprelu_jax.sae import released

NPZ, SAFETENSORS, CONFIG = 'params.npz', 'params.safetensors', 'config.json'
_SHAPES = {
  'W_enc': 'DM', 'b_enc': 'M', 'W_dec': 'ME', 'b_dec': 'E', 'threshold': 'M',
}  # fmt: skip
_SECOND = {
  'w_enc': 'W_enc', 'w_dec': 'W_dec', 'b_enc': 'b_enc', 'b_dec': 'b_dec',
  'threshold': 'threshold', 'affine_skip_connection': 'W_skip',
}  # fmt: skip
# Of the second's config.json: where it belongs, and how sparse it is.
_IDLE = (
  'model_name', 'hf_hook_point_in', 'hf_hook_point_out', 'l0', 'width', 'layer',
)  # fmt: skip
_SITES = {
  'res': 'resid_post', 'mlp': 'mlp_out', 'att': 'attn_z', 'resid_post':
  'resid_post', 'mlp_out': 'mlp_out', 'attn_out': 'attn_z',
}  # fmt: skip
# Hugging Face's places in a block, of the second.
_PLACES = {
  'resid_post': 'model.layers.{}.output',
  'attn_z': 'model.layers.{}.self_attn.o_proj.input',
  'mlp_out': 'model.layers.{}.post_feedforward_layernorm.output',
  'mlp_in': 'model.layers.{}.pre_feedforward_layernorm.output',
}


def read_npz(
  folder: pathlib.Path,
) -> tuple[released.SAE, details_lib.Details]:
  """Reads a folder with params.npz; InputError if it is not whole."""
  path = folder / NPZ
  found = weights.take(
    path,
    untrusted.read_npz,
    {**_SHAPES, 'scaling_factor': '*'},
    optional=('scaling_factor',),
    rename=lambda name: re.sub(r'^w_', 'W_', name),
  )
  rule, scale = found.pop('threshold'), found.pop('scaling_factor', None)
  if scale is not None:  # of what is decoded: one number, or one per latent
    found['W_dec'] = np.reshape(scale, (-1, 1)) * found['W_dec']
  return weights.build(**found, rule=rule), _details_of_path(folder)


def write_npz(
  sae: released.Released,
  details: details_lib.Details,
  folder: str | os.PathLike,
) -> None:
  """Writes params.npz; InputError for a skip, or k instead of thresholds."""
  del details  # there is no place for them
  _check(sae, 'gemma_scope')
  if sae.W_skip is not None:
    raise weights.refuse('gemma_scope', 'a skip connection')
  with whole.replacing(pathlib.Path(folder) / NPZ) as file:
    np.savez(file, **weights.arrays_of(sae))


def read_safetensors(
  folder: pathlib.Path,
) -> tuple[released.SAE, details_lib.Details]:
  """Reads a folder with params.safetensors, and config.json if it is there."""
  path = folder / SAFETENSORS
  found = weights.take(
    path,
    untrusted.read_safetensors,
    {**_SHAPES, 'W_skip': 'DE'},
    optional=('W_skip',),
    rename=lambda name: _SECOND.get(name, name),
  )
  rule = found.pop('threshold')
  config = {}
  if (folder / CONFIG).is_file():
    config = untrusted.read_json(folder / CONFIG)
    _check_config(folder / CONFIG, config, 'W_skip' in found)
  return weights.build(**found, rule=rule), _details_of_config(config)


def write_safetensors(
  sae: released.Released,
  details: details_lib.Details,
  folder: str | os.PathLike,
) -> None:
  """Writes params.safetensors and config.json; InputError for k."""
  _check(sae, 'gemma_scope2')
  names = {ours: theirs for theirs, ours in _SECOND.items()}
  arrays = {names[k]: v for k, v in weights.arrays_of(sae).items()}
  config = {
    'architecture': 'jump_relu',
    'model_name': details.model,
    'hf_hook_point_in': _place(details.site, details.layer),
    'affine_connection': sae.W_skip is not None,
  }
  if details.target_site:
    config['hf_hook_point_out'] = _place(
      details.target_site, details.target_layer
    )
  if details.l0 is not None:
    config['l0'] = details.l0
  weights.write_safetensors(folder, SAFETENSORS, arrays, CONFIG, config)


def _check(sae, name):
  if not isinstance(sae, released.SAE):
    raise weights.refuse(name, 'k instead of thresholds')


def _place(site, layer):
  """Returns Hugging Face's name of a place, or what there is to say."""
  if site in _PLACES and layer >= 0:
    return _PLACES[site].format(layer)
  return details_lib.hook_of(site, layer)


def _details_of_path(folder):
  """Returns what the folders' names say."""
  path = folder.resolve().as_posix()
  kind = re.search(r'gemma-scope-(\w+)-(pt|it)-(res|mlp|att|transcoders)', path)
  layer = re.search(r'/layer_(\d{1,9})(/|$)', path)
  l0 = re.search(r'/average_l0_(\d{1,9})', path)
  model = ''
  if kind:
    tuned = '-it' if kind[2] == 'it' else ''
    model = f'google/gemma-2-{kind[1]}{tuned}'
  is_transcoder = bool(kind) and kind[3] == 'transcoders'
  number = int(layer[1]) if layer else -1
  return details_lib.Details(
    model=model,
    site='mlp_in' if is_transcoder else _SITES.get(kind[3], '') if kind else '',
    layer=number,
    target_site='mlp_out' if is_transcoder else '',
    target_layer=number if is_transcoder else -1,
    trained_as='jumprelu',
    l0=float(l0[1]) if l0 else None,
  )


def _check_config(path, config, has_skip):
  """Raises InputError for keys that say something else than the arrays."""
  raw = hf_raw.Raw(config, str(path))
  raw.require('architecture', 'jump_relu')
  raw.require('affine_connection', has_skip)
  raw.refuse_others(_IDLE)


def _details_of_config(config):
  """Returns what config.json says; without one, nothing."""
  site, layer = _site_of(config.get('hf_hook_point_in'))
  target, target_layer = _site_of(config.get('hf_hook_point_out'))
  is_transcoder = bool(target) and (target, target_layer) != (site, layer)
  l0 = config.get('l0')
  return details_lib.Details(
    model=details_lib.text(config.get('model_name')),
    site=site,
    layer=layer,
    target_site=target if is_transcoder else '',
    target_layer=target_layer if is_transcoder else -1,
    trained_as='jumprelu',
    l0=details_lib.positive(l0),
    other=config,
  )


def _site_of(place):
  """Returns (site, layer) of Hugging Face's name of a place."""
  place = place if isinstance(place, str) else ''
  for site, pattern in _PLACES.items():
    match = re.fullmatch(
      re.escape(pattern).replace(r'\{\}', r'(\d{1,9})'), place
    )
    if match:
      return site, int(match[1])
  return details_lib.site_of(place)
