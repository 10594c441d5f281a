"""Configs: every recipe is valid; every mistake has its message."""

import importlib
import pathlib

import jax
import pytest

from configs import common
from jumprelu_jax import config as config_lib
from jumprelu_jax import errors
from jumprelu_jax import train

RECIPES = sorted(
  path.stem
  for path in pathlib.Path(common.__file__).parent.glob('*.py')
  if path.stem not in ('__init__', 'common', 'defaults')
)


def build(recipe, arg=''):
  module = importlib.import_module(f'configs.{recipe}')
  return config_lib.RunConfig.from_config_dict(module.get_config(arg).to_dict())


@pytest.mark.parametrize('arg', ['', 'quick'])
@pytest.mark.parametrize('recipe', RECIPES)
def test_recipe_is_valid_and_traces(recipe, arg):
  run = build(recipe, arg)
  train.check(run)
  state = jax.eval_shape(
    lambda key: train.init_state(run, (32,), key), jax.random.key(0)
  )
  assert state.sae.W_enc.shape == (32, run.sae.num_latents)


def test_defaults_are_gemma_scopes():
  c = common.gemma_scope()
  assert (c.optimizer.learning_rate, c.optimizer.warmup_steps) == (7e-5, 1000)
  assert (c.optimizer.beta1, c.optimizer.beta2) == (0, 0.999)
  assert (c.objective.bandwidth, c.sae.initial_threshold) == (1e-3, 1e-3)
  assert c.objective.sparsity_warmup_steps == 10_000
  assert c.train.batch_size * c.train.steps == 8_000_000_000


def test_round_trip_through_json():
  run = build('quickstart')
  assert config_lib.RunConfig.from_config_dict(run.to_dict()) == run


def test_with_values_changes_and_checks():
  run = build('quickstart')
  changed = run.with_values({'seed': 3, 'sae.num_latents': 800})
  assert (changed.seed, changed.sae.num_latents) == (3, 800)
  with pytest.raises(errors.InputError, match='expected > 0'):
    run.with_values({'objective.bandwidth': 0.0})


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'sae.num_latent': 8}, 'did you mean config.sae.num_latents'),
    ({'sae.num_latents': '8'}, 'has type str; expected int'),
    ({'sae.num_latents': 8.0}, 'has type float; expected int'),
    ({'seed': True}, 'has type bool; expected int'),
    ({'sae': 3}, 'expected a group of keys'),
    ({'sae.num_latents': 0}, 'expected >= 1'),
    ({'objective.bandwidth': float('nan')}, 'expected > 0'),
    ({'optimizer.learning_rate': float('inf')}, 'expected > 0'),
    ({'optimizer.decay_fraction': 1.5}, '<= 1'),
    ({'sae.compute_dtype': 'float16'}, 'float32, bfloat16'),
    ({'objective.sparsity_coeff': -1.0}, 'expected >= 0'),
    ({'sweep.saes': 'jumprelu/l0/1'}, 'expected several strs'),
    ({'sweep.saes': (1.0,)}, 'has type float; expected str'),
    ({'train.steps_per_checkpoint': 30}, 'not a multiple'),
    ({'optimizer.warmup_steps': 2001}, 'shorten the warm-up'),
    ({'objective.sparsity_warmup_steps': 2001}, 'shorten the warm-up'),
    ({'activations.bucket_rows': 100}, 'holds not one sequence.*larger'),
    ({'activations.bucket_rows': 1000}, 'make the bucket larger'),
    ({'activations.mode': 'lively'}, 'expected one of stored, live'),
    ({'activations.sequences_per_batch': 0}, 'expected >= 1'),
    (
      {'activations.mode': 'live', 'activations.max_norm_multiple': 10.0},
      "max_norm_multiple=10.0 needs .* set mode='stored' or the multiple to 0",
    ),
    (
      {'activations.mode': 'live', 'activations.store': 'gs://a/b'},
      "store='gs://a/b' is for stored training; set mode='stored' or leave",
    ),
    (
      {'train.batch_size': 1000, 'mesh.data': 6},
      'use a multiple of 6, e.g. 1002',
    ),
    ({'mesh.latent': 3}, 'use a multiple of 3, e.g. 1026'),
  ],
  ids=str,
)
def test_bad_values_are_refused(values, message):
  with pytest.raises(errors.InputError, match=message):
    build('quickstart').with_values(values)


def test_missing_keys_are_named():
  raw = build('quickstart').to_dict()
  del raw['lm'], raw['sae']['num_latents']
  with pytest.raises(errors.InputError, match='missing config keys: config.lm'):
    config_lib.RunConfig.from_config_dict(raw)


@pytest.mark.parametrize('key', ['architecture', 'kernel', 'name'])
def test_unknown_names_list_the_known_ones(key):
  group = 'sae' if key == 'architecture' else 'objective'
  run = build('quickstart').with_values({f'{group}.{key}': 'nonsense'})
  with pytest.raises(
    errors.InputError, match=f'{group}.{key}.*expected one of'
  ):
    train.check(run)


def test_words_may_be_given_with_commas():
  # As --config.activations.sites=resid_post/1,mlp_out/0 gives them.
  run = build('quickstart').with_values(
    {'activations.sites': ('resid_post/1,mlp_out/0',)}
  )
  assert run.activations.sites == ('resid_post/1', 'mlp_out/0')
