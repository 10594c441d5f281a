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
from jumprelu_jax.lm import hf_raw
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
# Of a trainer: how it trained, and where.
_IDLE = frozenset(
  """
  trainer_class dict_class layer lm_name submodule_name wandb_name device seed
  lr steps warmup_steps decay_start auxk_alpha top_k_aux threshold_beta
  threshold_start_step bandwidth sparsity_penalty sparsity_warmup_steps
  target_l0 group_fractions group_weights group_sizes l1_penalty resample_steps
  sparsity_function sparsity_queue_length p_start p_end anneal_start anneal_end
  n_sparsity_updates initial_sparsity_penalty k
  """.split()  # noqa: SIM905
)
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
  trainer = untrusted.group(config, 'trainer')
  name = details_lib.text(trainer.get('dict_class'))
  if name not in _SHAPES:
    raise errors.InputError(
      f'{folder / CONFIG}: dict_class {name!r} is not read; expected one of '
      f'{", ".join(_SHAPES)}.'
    )
  path = folder / WEIGHTS
  found = weights.take(path, torch_zip.read, _SHAPES[name])
  _check_config(folder / CONFIG, config, found)
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


def _check_config(path, config, found):
  """Raises InputError for keys that say something else than the arrays."""
  raw = hf_raw.Raw(config, str(path))
  trainer = raw.within('trainer')
  raw.refuse_others({'buffer'})
  sizes = next(
    found[name].shape[:: -1 if 'encoder' in name else 1]
    for name in ('W_enc', 'encoder.weight')
    if name in found
  )
  trainer.require('activation_dim', sizes[0])
  trainer.require('dict_size', sizes[1])
  if 'k' in found:
    trainer.require('k', int(found['k']))
  if 'group_sizes' in found and found['group_sizes'].sum() != sizes[1]:
    raise errors.InputError(
      f'{path.parent / WEIGHTS}: group_sizes are not {sizes[1]} latents in all.'
    )
  trainer.refuse_others(_IDLE)


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
  submodule = details_lib.text(trainer.get('submodule_name'))
  sites = {theirs: ours for ours, theirs in _SUBMODULES.items()}
  kind = submodule.removesuffix(f'_layer_{trainer.get("layer")}')
  buffer = untrusted.group(config, 'buffer')
  return details_lib.Details(
    model=details_lib.text(trainer.get('lm_name')),
    site=sites.get(kind, kind),
    layer=details_lib.number(trainer.get('layer'), -1),
    context_length=details_lib.number(buffer.get('ctx_len'), 0),
    trained_as=_TRAINED_AS[name],
    other=config,
  )
