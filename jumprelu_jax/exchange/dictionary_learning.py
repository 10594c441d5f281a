"""dictionary_learning's folders: ae.pt, a dict of tensors, and config.json."""

from __future__ import annotations

import json
import os
import pathlib

import numpy as np

from jumprelu_jax import errors
from jumprelu_jax import whole
from jumprelu_jax.exchange import details as details_lib
from jumprelu_jax.exchange import torch_zip
from jumprelu_jax.exchange import untrusted
from jumprelu_jax.exchange import weights
from jumprelu_jax.sae import released

WEIGHTS, CONFIG = 'ae.pt', 'config.json'
_LINEAR = {'encoder.weight': 'MD', 'encoder.bias': 'M', 'decoder.weight': 'DM'}
_SELECTED = {**_LINEAR, 'b_dec': 'D', 'k': '', 'threshold': ''}
#: Of each class of theirs the tensors, by the letters of their shapes.
_SHAPES = {
  'JumpReluAutoEncoder': {
    'W_enc': 'DM', 'b_enc': 'M', 'W_dec': 'MD', 'b_dec': 'D', 'threshold': 'M',
  },
  'AutoEncoder': {**_LINEAR, 'bias': 'D'},
  'AutoEncoderNew': {**_LINEAR, 'decoder.bias': 'D'},
  'GatedAutoEncoder': {
    'encoder.weight': 'MD', 'decoder.weight': 'DM', 'decoder_bias': 'D',
    'r_mag': 'M', 'gate_bias': 'M', 'mag_bias': 'M',
  },
  'AutoEncoderTopK': _SELECTED,
  'BatchTopKSAE': _SELECTED,
  'MatryoshkaBatchTopKSAE': {
    'W_enc': 'DM', 'b_enc': 'M', 'W_dec': 'MD', 'b_dec': 'D', 'k': '',
    'threshold': '', 'group_sizes': 'G',
  },
}  # fmt: skip
_TRAINED_AS = {
  'JumpReluAutoEncoder': 'jumprelu',
  'AutoEncoder': 'relu',
  'AutoEncoderNew': 'relu',
  'GatedAutoEncoder': 'gated',
  'AutoEncoderTopK': 'topk',
  'BatchTopKSAE': 'batch_topk',
  'MatryoshkaBatchTopKSAE': 'matryoshka_batch_topk',
}
_SUBMODULES = {
  'resid_post': 'resid_post',
  'mlp_out': 'mlp_out',
  'attn_out': 'attention_out',
}


def read(
  folder: pathlib.Path,
) -> tuple[released.Released, details_lib.Details]:
  """Reads a folder; InputError if it is damaged or of a class not known."""
  config = untrusted.read_json(folder / CONFIG)
  trainer = config.get('trainer')
  name = trainer.get('dict_class') if isinstance(trainer, dict) else None
  if name not in _SHAPES:
    raise errors.InputError(
      f'{folder / CONFIG}: dict_class {name!r} is not read; expected one of '
      f'{", ".join(_SHAPES)}.'
    )
  path = folder / WEIGHTS
  found = weights.take(path, torch_zip.read(path), _SHAPES[name])
  return _build(name, found), _details(config, trainer, name)


def write(
  sae: released.Released,
  details: details_lib.Details,
  folder: str | os.PathLike,
) -> None:
  """Writes a JumpReluAutoEncoder, or an AutoEncoderTopK.

  Raises:
    errors.InputError: it is a transcoder.
  """
  if details.target_site or sae.W_skip is not None:
    raise weights.refuse('dictionary_learning', 'transcoders')
  arrays = weights.arrays_of(sae)
  name, trainer = 'JumpReluAutoEncoder', 'JumpReluTrainer'
  if isinstance(sae, released.TopKSAE):
    name, trainer = 'AutoEncoderTopK', 'TopKTrainer'
    b_dec = np.asarray(arrays['b_dec'], np.float64)
    arrays = {
      # What it subtracts from the input is given back to the bias.
      'encoder.bias': np.asarray(
        arrays['b_enc'] + b_dec @ arrays['W_enc'], np.float32
      ),
      'encoder.weight': arrays['W_enc'].T,
      'decoder.weight': arrays['W_dec'].T,
      'b_dec': arrays['b_dec'],
      'k': np.asarray(sae.k, np.int32),
      'threshold': np.asarray(-1.0, np.float32),
    }
  config = {
    'trainer': {
      'trainer_class': trainer,
      'dict_class': name,
      'activation_dim': sae.W_enc.shape[0],
      'dict_size': sae.W_enc.shape[1],
      'layer': details.layer,
      'lm_name': details.model,
      'submodule_name': _SUBMODULES.get(details.site, details.site),
      **({'k': sae.k} if isinstance(sae, released.TopKSAE) else {}),
    },
    'buffer': {'ctx_len': details.context_length},
  }
  folder = pathlib.Path(folder)
  torch_zip.write(folder / WEIGHTS, arrays)
  whole.write_text(folder / CONFIG, json.dumps(config, indent=2) + '\n')


def _build(name, found):
  """Returns the SAE of checked arrays."""
  if name == 'JumpReluAutoEncoder':
    rule = found.pop('threshold')
    return weights.build(**found, rule=rule)
  if name == 'MatryoshkaBatchTopKSAE':
    rule = float(found.pop('threshold'))
    del found['k'], found['group_sizes']
    return weights.build(**found, rule=rule, subtracts=found['b_dec'])
  bias = next(n for n in _BIASES if n in found)
  W_enc, b_enc, rule = found['encoder.weight'].T, found.get('encoder.bias'), 0.0
  if name == 'GatedAutoEncoder':
    W_enc, b_enc, rule = weights.gated(
      W_enc, found['gate_bias'], found['r_mag'], found['mag_bias']
    )
  if name == 'AutoEncoderTopK':
    rule = int(found['k'])
  if name == 'BatchTopKSAE':
    rule = float(found['threshold'])
  return weights.build(
    W_enc,
    b_enc,
    found['decoder.weight'].T,
    found[bias],
    rule,
    subtracts=None if name == 'AutoEncoderNew' else found[bias],
  )


_BIASES = ('bias', 'b_dec', 'decoder_bias', 'decoder.bias')


def _details(config, trainer, name):
  submodule = str(trainer.get('submodule_name') or '')
  sites = {theirs: ours for ours, theirs in _SUBMODULES.items()}
  kind = submodule.removesuffix(f'_layer_{trainer.get("layer")}')
  buffer = config.get('buffer') or {}
  layer = trainer.get('layer')
  return details_lib.Details(
    model=str(trainer.get('lm_name') or ''),
    site=sites.get(kind, kind),
    layer=layer if isinstance(layer, int) else -1,
    context_length=int(buffer.get('ctx_len') or 0),
    trained_as=_TRAINED_AS[name],
    other=config,
  )
