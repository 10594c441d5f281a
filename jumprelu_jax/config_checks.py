"""Ranges of a config's values, and what must fit together."""

from __future__ import annotations

import dataclasses
import functools
import operator

from jumprelu_jax import errors
from jumprelu_jax import seeds
from jumprelu_jax import selection
from jumprelu_jax import shapes

DTYPES = ('float32', 'bfloat16')
# Words by key.
_CHOICES = {
  'lm.dtype': DTYPES,
  'text.packing': ('pack', 'document'),
  'activations.mode': ('stored', 'live'),
  'activations.dtype': DTYPES,
  'activations.format': ('npy', 'zarr3'),
  'sae.compute_dtype': DTYPES,
  'sae.selection': ('exact', 'approximate'),
  'sae.initial_b_dec': ('zeros', 'mean', 'geometric_median'),
  'optimizer.decay': ('cosine', 'linear'),
}

# Ranges by key: (low, high, is_low_included); high is included, None is open.
_RANGES = {
  'lm.layer': (0, None, True),
  'lm.target_layer': (-1, None, True),
  'text.context_length': (2, None, True),
  'text.bos_id': (-1, None, True),
  'activations.sequences': (0, shapes.LARGEST_INDEX, True),
  'activations.sequences_per_batch': (1, None, True),
  'activations.bucket_rows': (1, None, True),
  'activations.max_norm_multiple': (0, None, True),
  'activations.prefetch_batches': (0, None, True),
  'sae.num_latents': (1, selection.MOST_LATENTS, True),
  'sae.k': (1, None, True),
  'sae.capacity': (-1, selection.MOST_LATENTS, True),
  'sae.initial_threshold': (0, None, False),
  'sae.initial_encoder_norm': (0, None, False),
  'sae.initial_decoder_norm': (0, None, False),
  'sae.initial_frequency': (0, 0.5, True),
  'objective.sparsity_coeff': (0, None, True),
  'objective.sparsity_warmup_steps': (0, None, True),
  'objective.bandwidth': (0, None, False),
  'objective.target_l0': (0, None, False),
  'objective.frequency_scale': (0, None, False),
  'objective.tanh_scale': (0, None, False),
  'objective.pre_activation_coeff': (0, None, True),
  'objective.aux_k_coeff': (0, None, True),
  'objective.aux_k': (1, None, True),
  'objective.dead_after_tokens': (1, 2**30, True),
  'objective.controller_gain': (0, None, True),
  'objective.controller_rate': (0, 1, False),
  'objective.window_rows': (0, None, False),
  'optimizer.learning_rate': (0, None, False),
  'optimizer.threshold_learning_rate': (0, None, True),
  'optimizer.beta1': (0, 0.99999, True),
  'optimizer.beta2': (0, 0.99999, False),
  'optimizer.epsilon': (0, None, False),
  'optimizer.warmup_steps': (0, None, True),
  'optimizer.decay_fraction': (0, 1, True),
  'optimizer.max_gradient_norm': (0, None, True),
  'optimizer.threshold_gradient_decay': (0, 0.99999, True),
  'train.steps': (1, shapes.LARGEST_INDEX, True),
  'train.batch_size': (1, selection.MOST_ROWS, True),
  'train.steps_per_log': (1, None, True),
  'train.steps_per_checkpoint': (1, None, True),
  'train.stream_seed': (-1, seeds.MOST, True),
  # Of SAEs that are trained together one may have saved a step more.
  'train.checkpoints_kept': (2, None, True),
  'train.max_bad_batches': (0, 2**30, True),
  'evaluation.sequences': (0, None, True),
  'evaluation.sequences_per_batch': (1, None, True),
  'evaluation.importance_sequences': (0, None, True),
  'mesh.data': (1, None, True),
  'mesh.latent': (1, None, True),
  'mesh.sweep': (1, None, True),
  'seed': (0, seeds.MOST, True),
}


def check(run) -> None:
  """Raises InputError where a `config.RunConfig` is not one that can run."""
  raw = dataclasses.asdict(run)
  for key, (low, high, is_low_included) in _RANGES.items():
    value = functools.reduce(operator.getitem, key.split('.'), raw)
    is_low_enough = value >= low if is_low_included else value > low
    # Written so that NaN and infinity fail as well.
    if (
      not is_low_enough
      or not value < float('inf')
      or (high is not None and value > high)
    ):
      least = f'{">=" if is_low_included else ">"} {low}'
      most = '' if high is None else f' and <= {high}'
      raise errors.InputError(
        f'config.{key}={value} is out of range; expected {least}{most}.'
      )
  for key, words in _CHOICES.items():
    value = functools.reduce(operator.getitem, key.split('.'), raw)
    if value not in words:
      raise errors.InputError(
        f'config.{key}={value!r} is not known; expected one of '
        f'{", ".join(words)}.'
      )
  _check_activations(run)
  _check_counts(run)
  _check_sparsity(run)
  _check_train(run)
  _check_mesh(run)


def _check_activations(run):
  config = run.activations
  if config.bucket_rows < run.text.context_length:
    raise errors.InputError(
      f'config.activations.bucket_rows={config.bucket_rows} holds not one '
      f'sequence of config.text.context_length={run.text.context_length}; '
      'make it larger.'
    )
  if config.bucket_rows < run.train.batch_size:
    raise errors.InputError(
      f'config.activations.bucket_rows={config.bucket_rows} is less than '
      f'config.train.batch_size={run.train.batch_size}; a batch would not be '
      'shuffled, make the bucket larger.'
    )
  if config.mode == 'live' and config.max_norm_multiple:
    raise errors.InputError(
      f'config.activations.max_norm_multiple={config.max_norm_multiple} needs '
      "the norms of all rows before the first step; set mode='stored' or the "
      'multiple to 0.'
    )
  if config.mode == 'live' and config.store:
    raise errors.InputError(
      f'config.activations.store={config.store!r} is for stored training; set '
      "mode='stored' or leave the store empty."
    )


def _check_counts(run):
  """Positions of a batch are counted in 32 bits."""
  for key, config in (
    ('activations', run.activations),
    ('evaluation', run.evaluation),
  ):
    positions = config.sequences_per_batch * run.text.context_length
    if positions > shapes.LARGEST_INDEX:
      raise errors.InputError(
        f'config.{key}.sequences_per_batch={config.sequences_per_batch} of '
        f'config.text.context_length={run.text.context_length} are '
        f'{positions:,} positions of a batch; expected at most '
        f'{shapes.LARGEST_INDEX:,}: lower either.'
      )


def _check_sparsity(run):
  for key, value in (
    ('sae.k', run.sae.k),
    ('objective.target_l0', run.objective.target_l0),
  ):
    if value >= run.sae.num_latents:
      raise errors.InputError(
        f'config.{key}={value} is not less than config.sae.num_latents='
        f'{run.sae.num_latents}, so that nothing would be sparse; lower it.'
      )


def _check_train(run):
  train = run.train
  if train.steps_per_checkpoint % train.steps_per_log:
    raise errors.InputError(
      f'config.train.steps_per_checkpoint={train.steps_per_checkpoint} is '
      f'not a multiple of config.train.steps_per_log={train.steps_per_log}; '
      'a resumed run could not repeat the record that it was killed in.'
    )
  for key, warmup in (
    ('optimizer.warmup_steps', run.optimizer.warmup_steps),
    ('objective.sparsity_warmup_steps', run.objective.sparsity_warmup_steps),
  ):
    if warmup > train.steps:
      raise errors.InputError(
        f'config.{key}={warmup} does not end by config.train.steps='
        f'{train.steps}; shorten the warm-up or train for longer.'
      )


def _check_mesh(run):
  for key, size, axis in (
    ('train.batch_size', run.train.batch_size, 'data'),
    ('sae.num_latents', run.sae.num_latents, 'latent'),
  ):
    devices = getattr(run.mesh, axis)
    if size % devices:
      nearest = -(-size // devices) * devices
      raise errors.InputError(
        f'config.{key}={size} is not divisible by mesh axis '
        f'{axis!r}={devices} (mesh=({run.mesh.data}, {run.mesh.latent})); '
        f'use a multiple of {devices}, e.g. {nearest}.'
      )
