"""Configs that older versions wrote: keys that they lack, and what they did.

The keys of the first version have no default here: a config without one of them
was written by none.
"""

from __future__ import annotations

from collections.abc import Mapping
import copy
from typing import Any

#: What a version computed that did not have the key, by dotted key. A new key
#: needs a row; its value need not be today's default.
BEFORE: dict[str, Any] = {
  'lm.revision': '',
  'lm.dtype': 'float32',
  'lm.target_site': '',
  'lm.target_layer': -1,
  'text.packing': 'pack',
  'text.bos_id': -1,
  'text.special_ids': (),
  'activations.mode': 'stored',
  'activations.store': '',
  'activations.sites': (),
  'activations.dtype': 'float32',
  'activations.format': 'npy',
  'activations.max_norm_multiple': 0.0,
  'activations.prefetch_batches': 2,
  'sae.k': 50,
  'sae.selection': 'exact',
  'sae.initial_encoder_norm': 1.0,
  'sae.initial_decoder_norm': 1.0,
  'sae.initial_b_dec': 'zeros',
  'sae.initial_frequency': 0.0,
  'sae.capacity': -1,
  'objective.estimator': 'threshold',
  'objective.target_l0': 50.0,
  'objective.frequency_scale': 0.1,
  'objective.tanh_scale': 4.0,
  'objective.pre_activation_coeff': 0.0,
  'objective.aux_k_coeff': 1 / 32,
  'objective.aux_k': 512,
  'objective.dead_after_tokens': 10_000_000,
  'objective.prefixes': (),
  'objective.components': (),
  'objective.controller_gain': 2.0,
  'objective.controller_rate': 0.02,
  'objective.window_rows': 4.0,
  'optimizer.decay': 'cosine',
  'optimizer.max_gradient_norm': 0.0,
  'optimizer.threshold_gradient_decay': 0.0,
  'optimizer.is_fused': False,
  'train.stream_seed': -1,
  'train.checkpoints_kept': 2,
  'train.max_bad_batches': 0,
  'evaluation.splice_special': False,
  'evaluation.importance_sequences': 0,
  'mesh.sweep': 1,
  'mesh.divides_optimizer': False,
  'sweep.saes': (),
  'sweep.over': (),
}
# What only swept over lambda, before `sweep.saes`.
_OLD_SWEEP = 'sparsity_coeffs'


def complete(raw: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a stored config with the keys that its version did not have."""
  result = copy.deepcopy(dict(raw))
  for key, value in BEFORE.items():
    group, name = key.split('.')
    values = result.setdefault(group, {})
    if isinstance(values, dict):
      values.setdefault(name, value)
  sweep = result['sweep']
  if isinstance(sweep, dict) and isinstance(sweep.get(_OLD_SWEEP), list):
    words = ['jumprelu', 'l0', *map(str, sweep.pop(_OLD_SWEEP))]
    sweep['saes'] = ('/'.join(words),)
  return result
