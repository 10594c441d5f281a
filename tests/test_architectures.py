"""What does not fit an architecture is refused, and how a sweep is spelled."""

import pytest

from jumprelu_jax import architectures
from jumprelu_jax import errors
from jumprelu_jax import sweeps
from jumprelu_jax import train

TOPK = ('topk', 'batch_topk', 'matryoshka_batch_topk')
TRANSCODERS = [
  name
  for name, architecture in architectures.ARCHITECTURES.items()
  if architecture.num_sites == 2
]


def change(run, architecture='jumprelu', objective='l0', **values):
  """A run with other values: names, and dotted keys by __."""
  names = {'sae.architecture': architecture, 'objective.name': objective}
  values = {key.replace('__', '.'): value for key, value in values.items()}
  return run.with_values(names | values)


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'sae__k': 0}, r'config.sae.k=0 .*expected >= 1'),
    ({'sae__k': 256}, 'config.sae.k=256 is not less than .*num_latents=256'),
    ({'sae__k': 300}, 'config.sae.k=300 is not less than .*num_latents=256'),
    (
      {'objective__target_l0': 0.0},
      'config.objective.target_l0=0.0 .*expected > 0',
    ),
    (
      {'objective__target_l0': 256.0},
      'config.objective.target_l0=256.0 is not less than .*num_latents=256',
    ),
    ({'sae__selection': 'fast'}, "selection='fast' .*exact, approximate"),
    ({'sae__initial_b_dec': 'median'}, "initial_b_dec='median' .*zeros, mean"),
    ({'sae__initial_frequency': 0.6}, 'initial_frequency=0.6 .*<= 0.5'),
    ({'optimizer__decay': 'exp'}, "optimizer.decay='exp' .*cosine, linear"),
    (
      {'optimizer__threshold_gradient_decay': 1.0},
      'threshold_gradient_decay=1.0 .*<= 0.99999',
    ),
    ({'objective__controller_rate': 0.0}, 'controller_rate=0.0 .*expected > 0'),
    (
      {'objective__dead_after_tokens': 0},
      'dead_after_tokens=0 .*expected >= 1',
    ),
  ],
  ids=str,
)
def test_number_out_of_range_is_refused(make_run, values, message):
  with pytest.raises(errors.InputError, match=message):
    change(make_run(), **values)


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    (
      {'architecture': 'topp'},
      "config.sae.architecture='topp' is not known; .*jumprelu.*topk",
    ),
    (
      {'objective': 'l0+foo'},
      r"config.objective.name='l0\+foo': 'foo' is not known; .*l0, target_l0",
    ),
    ({'objective': ''}, "name='': '' is not known"),
    ({'objective': 'l0+'}, r"name='l0\+': '' is not known"),
    ({'objective': 'l0+l0'}, r"name='l0\+l0': a part is there twice"),
    (
      {'objective': 'gated'},
      "jumprelu cannot be trained by 'gated'; it can by aux_k, l0, l1,",
    ),
    ({'objective': 'reconstruction'}, "cannot be trained by 'reconstruction'"),
    (
      {'objective': 'l0+gated_ri_l1'},
      r"name='l0\+gated_ri_l1': jumprelu cannot be trained by 'gated_ri_l1'",
    ),
    (
      {'architecture': 'topk'},
      "topk cannot be trained by 'l0'; it can by aux_k, reconstruction",
    ),
    (
      {'architecture': 'gated', 'objective': 'gated_ri_l1'},
      "gated cannot be trained by 'gated_ri_l1'; it can by aux_k, gated",
    ),
    (
      {'architecture': 'jumprelu_free_norm', 'objective': 'l1'},
      "jumprelu_free_norm cannot be trained by 'l1'",
    ),
    (
      {'objective': 'aux_k'},
      "name='aux_k': nothing keeps jumprelu sparse; join .* by +",
    ),
    (
      {'objective': 'pre_activation+aux_k'},
      'nothing keeps jumprelu sparse',
    ),
    (
      {'architecture': 'gated', 'objective': 'aux_k'},
      'nothing keeps gated sparse',
    ),
    (
      {'objective': 'l0+aux_k', 'objective__aux_k': 257},
      'config.objective.aux_k=257 is more than .*num_latents=256',
    ),
    (
      {'objective__components': ('l0_contoller',)},
      "components='l0_contoller' is not known; .*l0_controller, adaptive_b",
    ),
    (
      # It belongs to an architecture.
      {'objective__components': ('selection_threshold',)},
      "components='selection_threshold' is not known",
    ),
    (
      {
        'architecture': 'relu',
        'objective': 'ri_l1',
        'objective__components': ('adaptive_bandwidth',),
      },
      "relu has no bandwidth; leave 'adaptive_bandwidth' away",
    ),
    (
      {
        'architecture': 'gated',
        'objective': 'gated',
        'objective__components': ('l0_controller', 'adaptive_bandwidth'),
      },
      'gated has no bandwidth',
    ),
    (
      {
        'objective': 'target_l0',
        'objective__components': ('l0_controller',),
      },
      "'l0_controller' and 'target_l0' both aim at target_l0",
    ),
    (
      {'architecture': 'jumprelu_transcoder'},
      "target_site='': jumprelu_transcoder needs target",
    ),
    (
      {'lm__target_site': 'mlp_out'},
      "target_site='mlp_out': jumprelu has no target",
    ),
    ({'objective__kernel': 'square'}, "kernel='square' is not known; .*biwei"),
    ({'objective__estimator': 'both'}, "estimator='both' is not known"),
  ],
  ids=str,
)
def test_config_that_does_not_fit_is_refused(make_run, values, message):
  run = change(make_run(), **values)
  with pytest.raises(errors.InputError, match=message):
    train.check(run)


@pytest.mark.parametrize('component', ['l0_controller', 'adaptive_bandwidth'])
@pytest.mark.parametrize('architecture', TOPK)
def test_what_has_a_k_has_no_optional_components(
  make_run, architecture, component
):
  run = change(
    make_run(),
    architecture,
    'aux_k',
    objective__prefixes=(64, 256),
    objective__components=(component,),
  )
  with pytest.raises(
    errors.InputError,
    match=f'{architecture} has neither a sparsity coefficient nor a bandwidth',
  ):
    train.check(run)


@pytest.mark.parametrize(
  'prefixes',
  [(), (64,), (64, 128), (64, 64, 256), (128, 64, 256), (0, 256), (256, 512)],
  ids=str,
)
@pytest.mark.parametrize(
  ('architecture', 'objective'),
  [('matryoshka_jumprelu', 'l0'), ('matryoshka_batch_topk', 'aux_k')],
)
def test_prefixes_increase_up_to_all_latents(
  make_run, architecture, objective, prefixes
):
  run = change(
    make_run(), architecture, objective, objective__prefixes=prefixes
  )
  with pytest.raises(
    errors.InputError,
    match=r'config.objective.prefixes=\(.*increase and end in '
    'config.sae.num_latents=256, such as 64,128,256',
  ):
    train.check(run)
  for fitting in ((256,), (1, 256), (64, 128, 256)):
    train.check(run.with_values({'objective.prefixes': fitting}))


@pytest.mark.parametrize('name', TRANSCODERS)
def test_transcoder_needs_a_target(make_run, name):
  objective = 'aux_k' if 'topk' in name else 'l0'
  run = change(make_run(), name, objective, lm__site='mlp_in')
  with pytest.raises(errors.InputError, match=f'{name} needs target'):
    train.check(run)
  train.check(run.with_values({'lm.target_site': 'mlp_out'}))


def test_sweep_fills_in_what_sets_the_sparsity(make_run):
  run = make_run(
    sae__k=7,
    objective__sparsity_coeff=0.5,
    sweep__saes=('jumprelu/l0+aux_k/1e-3/0.02', 'topk/aux_k/4/16'),
  )
  swept = sweeps.expand(run)
  found = [
    (
      of.sae.architecture,
      of.objective.name,
      of.objective.sparsity_coeff,
      of.sae.k,
    )
    for of in swept.values()
  ]
  assert found == [
    ('jumprelu', 'l0+aux_k', 1e-3, 7),
    ('jumprelu', 'l0+aux_k', 0.02, 7),
    ('topk', 'aux_k', 0.5, 4),
    ('topk', 'aux_k', 0.5, 16),
  ]
  assert list(swept) == [
    'jumprelu_l0+aux_k_0.001',
    'jumprelu_l0+aux_k_0.02',
    'topk_aux_k_4',
    'topk_aux_k_16',
  ]
  # All else is the run's.
  for of in swept.values():
    keys = ('sae.architecture', 'objective.name', 'objective.sparsity_coeff')
    back = {key: value_of(run, key) for key in (*keys, 'sae.k')}
    assert of.with_values(back) == run


def test_sweep_goes_over_all_combinations(make_run):
  run = make_run(
    seed=7,
    sweep__saes=('jumprelu/l0/1e-3', 'topk/aux_k/4'),
    sweep__over=('seed=0/1', 'optimizer.learning_rate=1e-3/3e-3'),
  )
  swept = sweeps.expand(run)
  assert list(swept)[:3] == [
    'jumprelu_l0_0.001_seed_0_learning_rate_1e-3',
    'jumprelu_l0_0.001_seed_0_learning_rate_3e-3',
    'jumprelu_l0_0.001_seed_1_learning_rate_1e-3',
  ]
  assert len(swept) == 2 * 2 * 2
  of = swept['topk_aux_k_4_seed_1_learning_rate_3e-3']
  assert (of.seed, of.optimizer.learning_rate, of.sae.k) == (1, 3e-3, 4)
  # One stream of rows for all: that of the config.
  assert {of.stream_seed for of in swept.values()} == {7}


@pytest.mark.parametrize(
  ('over', 'message'),
  [
    ('seed', "'seed' is not of the form key=value"),
    ('lm.layer=1/2', "'lm.layer=1/2' is not of the form.*keys are seed and"),
    ('optimizer.rate=1', "'optimizer.rate=1' is not of the form"),
    ('seed=0/x', "'seed=0/x': invalid literal"),
    ('seed=0/0', 'none twice'),
    ('seed=1/01', 'jumprelu_l0_1_seed_1 and jumprelu_l0_1_seed_01 are the sa'),
    ('optimizer.learning_rate=1e-3/.001', 'are the same SAE; write each value'),
    ('sae.use_pre_encoder_bias=1', 'is no number and no word'),
    ('optimizer.beta1=2', 'config.optimizer.beta1=2.0 is out of range'),
  ],
)
def test_malformed_combination_is_refused(make_run, over, message):
  run = make_run(sweep__saes=('jumprelu/l0/1',), sweep__over=(over,))
  with pytest.raises(errors.InputError, match=message):
    sweeps.expand(run)


def value_of(run, key):
  group, name = key.split('.')
  return getattr(getattr(run, group), name)


def test_every_architecture_is_swept_by_its_own_number(make_run):
  for name, architecture in architectures.ARCHITECTURES.items():
    has_k = 'topk' in name
    objective = min(architecture.trained_by - {'aux_k'})
    run = make_run(
      sweep__saes=(f'{name}/{objective}/3',),
      objective__prefixes=(64, 256) if 'matryoshka' in name else (),
      lm__target_site='resid_post' if name in TRANSCODERS else '',
    )
    (swept,) = sweeps.expand(run).values()
    changed = (swept.sae.k, swept.objective.sparsity_coeff)
    before = (run.sae.k, run.objective.sparsity_coeff)
    assert changed == ((3, before[1]) if has_k else (before[0], 3.0)), name
    assert architectures.sparsity(swept) == 3


@pytest.mark.parametrize(
  ('saes', 'message'),
  [
    ((), 'expected at least one SAE and none twice'),
    (('jumprelu/l0/1', 'jumprelu/l0/1'), 'none twice'),
    (('jumprelu/l0/1/2/1.0',), 'none twice'),
    (('jumprelu/l0',), "'jumprelu/l0' is not of the form architecture/obj"),
    (('jumprelu',), "'jumprelu' is not of the form"),
    (('',), "'' is not of the form"),
    (('jumprelu/l0/',), "'jumprelu/l0/' is not of the form"),
    (('jumprelu/l0/small',), "'jumprelu/l0/small' is not of the form"),
    (
      ('jumprelu/l0/1', 'topk/aux_k/1.5'),
      "'topk/aux_k/1.5' is not of the form",
    ),
    (('topk/aux_k/1e1',), "'topk/aux_k/1e1' is not of the form.*whole number"),
    (('foo/l0/1',), "architecture='foo' is not known"),
    (('jumprelu/foo/1',), "'foo' is not known"),
    (('jumprelu/aux_k/1',), 'nothing keeps jumprelu sparse'),
    (('topk/l0/1',), "topk cannot be trained by 'l0'"),
    (('topk/aux_k/0',), 'config.sae.k=0 .*expected >= 1'),
    (('topk/aux_k/256',), 'config.sae.k=256 is not less than'),
    (('jumprelu/l0/-1',), 'sparsity_coeff=-1.0 .*expected >= 0'),
    (('jumprelu/l0/nan',), 'sparsity_coeff=nan .*expected >= 0'),
    (('jumprelu_transcoder/l0/1',), 'jumprelu_transcoder needs target'),
  ],
  ids=str,
)
def test_malformed_sweep_is_refused(make_run, saes, message):
  run = make_run(sweep__saes=saes)
  with pytest.raises(errors.InputError, match=message):
    sweeps.expand(run)
