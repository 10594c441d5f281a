"""One choice at a time away from the tuned JumpReLU.

All at the L0 where it was tuned; and a few at three times that, where another
recipe might suit better.
"""

from __future__ import annotations

import math

from experiments.reproduce import presets
from experiments.reproduce import tuning
from jumprelu_jax import config as config_lib

_MATCHED = ('triangle', 'epanechnikov', 'biweight', 'gaussian')
_WINDOWS = (0.1, 0.3, 3.0, 10.0)
# A raw threshold moves by the rate itself, not by a share of the threshold.
_RAW_RATES = (3e-4, 1e-3, 3e-3)
_BATCHES = (0.25, 0.5, 2.0, 4.0)
_DENSER = 3


def variants(
  preset: presets.Preset, run: config_lib.RunConfig, tuned: presets.Values
) -> dict[str, config_lib.RunConfig]:
  """Returns a config for each SAE, by 'what: how'.

  Args:
    preset: its first kind is the one that is changed.
    run: the config that all SAEs start from.
    tuned: that kind's values.
  """
  kind, l0 = preset.kinds[0], preset.tuned_l0
  recipe, denser = (
    kind.config(run, {**tuning.at_l0(kind, one), **tuned})
    for one in (l0, _DENSER * l0)
  )
  return {
    **_changed(recipe, _choices(recipe)),
    **{
      f'L0 {_DENSER * l0}, {name}': config
      for name, config in _changed(denser, _remedies(denser)).items()
    },
  }


def base_of(variant: str) -> str:
  """Returns the variant that one is to be held against: the recipe's."""
  at_l0, comma, _ = variant.partition(', ')
  return f'{at_l0}, recipe' if comma and at_l0.startswith('L0') else 'recipe'


def _changed(recipe, changes):
  return {name: recipe.with_values(values) for name, values in changes.items()}


def _choices(recipe):
  """Returns what the paper chose, and what it might have."""
  return {
    'recipe': {},
    **{
      f'kernel: {name}': {'objective.kernel': f'{name}_matched'}
      for name in _MATCHED
    },
    **{
      f'bandwidth: {factor:g} times': {
        'objective.bandwidth': factor * recipe.objective.bandwidth
      }
      for factor in _WINDOWS
    },
    'pre-encoder bias: none': {'sae.use_pre_encoder_bias': False},
    'penalty: L1': {'objective.name': 'l1'},
    **{
      f'threshold: raw, rate {rate:g}': {
        'sae.architecture': 'jumprelu_raw_threshold',
        presets.THRESHOLD_RATE: rate,
      }
      for rate in _RAW_RATES
    },
    **{
      f'batch: {factor:g} times, {rule}': _at_batch(recipe, factor, power)
      for factor in _BATCHES
      for rule, power in (('same rates', 0), ('rates by root', 0.5))
    },
  }


def _remedies(recipe):
  """Returns what might keep latents alive where more of them fire."""
  rate, threshold_rate = (
    recipe.optimizer.learning_rate,
    recipe.optimizer.threshold_learning_rate,
  )
  return {
    'recipe': {},
    **{
      f'rates: {share:g} times': {
        presets.RATE: share * rate,
        presets.THRESHOLD_RATE: share * threshold_rate,
      }
      for share in (0.5, 0.25)
    },
    'threshold rate: 0.25 times': {
      presets.THRESHOLD_RATE: 0.25 * threshold_rate
    },
    'first moment: none': {'optimizer.beta1': 0.0},
    'penalty: L0 and AuxK': {'objective.name': 'l0+aux_k'},
  }


def _at_batch(run, factor, power):
  """Returns a batch so many times as large: same tokens, same schedule."""
  rates = math.pow(factor, power)

  def steps(count):
    return max(1, round(count / factor))

  steps_per_log = steps(run.train.steps_per_log)
  logs = run.train.steps_per_checkpoint // run.train.steps_per_log
  return {
    'train.batch_size': round(factor * run.train.batch_size),
    'train.steps': steps(run.train.steps),
    'train.steps_per_log': steps_per_log,
    'train.steps_per_checkpoint': logs * steps_per_log,
    'optimizer.warmup_steps': steps(run.optimizer.warmup_steps),
    'optimizer.learning_rate': rates * run.optimizer.learning_rate,
    presets.THRESHOLD_RATE: rates * run.optimizer.threshold_learning_rate,
    'objective.sparsity_warmup_steps': steps(
      run.objective.sparsity_warmup_steps
    ),
    'objective.controller_rate': factor * run.objective.controller_rate,
  }
