"""What each study trains: (variant, config, trainer) of every SAE."""

from collections.abc import Iterator
from typing import NamedTuple

from experiments.small_budget import trainers
from jumprelu_jax import config as config_lib


class Case(NamedTuple):
  """One SAE.

  Attributes:
    variant: its name in the table.
    run: its config.
    trainer: one of `trainers`.
  """

  variant: str
  run: config_lib.RunConfig
  trainer: object = trainers.train_ours


COEFF = 'objective.sparsity_coeff'
COEFFS = (1e-3, 2e-3, 4e-3)
LEARNING_RATES = (1e-3, 3e-3, 1e-2)
SEEDS = (0, 1)

#: SAELens' decoder, and with it its encoder, starts at norm 0.1, so its
#: pre-activations are ten times smaller than ours at first. Adam's beta2 is its
#: default.
SAELENS = {
  'sae.initial_threshold': 0.02,
  'objective.bandwidth': 0.004,
  'optimizer.beta2': 0.999,
}

#: Nothing here was searched; the bandwidth and first threshold are usual ones.
YARDSTICK = {
  'sae.initial_threshold': 0.01,
  'objective.bandwidth': 0.002,
  COEFF: 1e-3,
  'optimizer.beta1': 0.0,
  'optimizer.beta2': 0.999,
  'optimizer.warmup_steps': 40,
  'optimizer.decay_fraction': 0.2,
}
YARDSTICK_RATES = (1e-3, 3e-3)

_RAW = {'sae.architecture': 'jumprelu_raw_threshold'}
#: One factor at a time away from the recipe: name → overrides.
ABLATION = {
  'recipe': {},
  'beta2=0.999': {'optimizer.beta2': 0.999},
  'decay_fraction=0': {'optimizer.decay_fraction': 0.0},
  'threshold_lr=7e-3': {'optimizer.threshold_learning_rate': 7e-3},
  'initial_threshold=0.001': {'sae.initial_threshold': 1e-3},
  'bandwidth=0.001': {'objective.bandwidth': 1e-3},
  'bandwidth=0.005': {'objective.bandwidth': 5e-3},
  'raw_threshold,lr=1e-3': _RAW | {'optimizer.threshold_learning_rate': 1e-3},
  'gemma_scope': {
    'optimizer.learning_rate': 7e-5,
    'optimizer.threshold_learning_rate': 7e-5,
    'optimizer.beta2': 0.999,
    'optimizer.decay_fraction': 0.0,
    'sae.initial_threshold': 1e-3,
    'objective.bandwidth': 1e-3,
  },
}

# Wherever a study compares at one L0, the controller leads there, and k is it.
MATCHED_L0 = 32
_CONTROLLED = {
  'objective.components': ('l0_controller',),
  'objective.target_l0': float(MATCHED_L0),
  'sae.k': MATCHED_L0,
}
# configs/jumprelu_tanh.py in the units of 128 dimensions.
_ANTHROPIC = {
  'sae.initial_threshold': 0.098,
  'sae.initial_decoder_norm': 0.577,
  'objective.estimator': 'threshold_and_encoder',
  'objective.bandwidth': 0.177,
  'objective.tanh_scale': 45.0,
  'objective.pre_activation_coeff': 2.7e-7,
}
_FREE = {'sae.initial_decoder_norm': 0.1}
_NESTED = {'objective.prefixes': (64, 128, 256, 512, 1024)}
_SELECTED = {'objective.components': ()}
# Their target is their own affair; the coefficient says how strictly.
_TARGETED = _SELECTED | {COEFF: 0.3}
#: architecture/objective → overrides.
ARCHITECTURES = {
  'jumprelu/l0': {},
  'jumprelu/target_l0': _TARGETED,
  'jumprelu/target_mean_l0': _TARGETED,
  'jumprelu/quadratic_frequency': {},
  'jumprelu/l1': {},
  'jumprelu/l0+aux_k': {},
  'jumprelu_raw_threshold/l0': {'optimizer.threshold_learning_rate': 1e-3},
  'jumprelu_free_norm/ri_l1': _FREE,
  'jumprelu_free_norm/tanh+pre_activation': _ANTHROPIC,
  'gated/gated': {},
  'gated_free_norm/gated_ri_l1': _FREE,
  'topk/aux_k': _SELECTED,
  'batch_topk/aux_k': _SELECTED,
  'relu/ri_l1': _FREE | {'sae.initial_encoder_norm': 0.1},
  'matryoshka_jumprelu/l0': _NESTED,
  'matryoshka_batch_topk/aux_k': _NESTED | _SELECTED,
}
TRANSCODERS = {
  'jumprelu_transcoder/l0': {},
  'jumprelu_skip_transcoder/l0': {},
  'topk_transcoder/aux_k': _SELECTED,
  'topk_skip_transcoder/aux_k': _SELECTED,
}
#: Both of the recipe's learning rates, which were searched for JumpReLU with
#: unit decoder rows, times these; the others take the better.
RATIOS = (1.0, 0.3)
_SEARCHED = ('jumprelu/', 'jumprelu_raw', 'matryoshka_jumprelu')

#: What goes beyond the paper, at one L0.
COMPONENTS = {
  'controller': {},
  'adaptive_bandwidth,rows=4': {
    'objective.components': ('l0_controller', 'adaptive_bandwidth'),
    'objective.window_rows': 4.0,
  },
  'adaptive_bandwidth,rows=16': {
    'objective.components': ('l0_controller', 'adaptive_bandwidth'),
    'objective.window_rows': 16.0,
  },
  'threshold_gradient_decay=0.9': {'optimizer.threshold_gradient_decay': 0.9},
  'threshold_gradient_decay=0.99': {'optimizer.threshold_gradient_decay': 0.99},
}
# Around the matched L0, to see what the controller itself costs.
_CONSTANT_COEFFS = (1e-3, 1.3e-3)


def ablation(run: config_lib.RunConfig) -> Iterator[Case]:
  """One factor at a time away from the recipe."""
  for name, values in ABLATION.items():
    yield Case(name, run.with_values(values | {COEFF: 1.5e-3}))


def grid(run: config_lib.RunConfig) -> Iterator[Case]:
  """The recipe over learning rates."""
  for rate in LEARNING_RATES:
    values = _at_ratio(run, rate / run.optimizer.learning_rate)
    for coeff in COEFFS:
      yield Case(f'lr={rate:g}', run.with_values(values | {COEFF: coeff}))


def saelens(run: config_lib.RunConfig) -> Iterator[Case]:
  """SAELens over the same grid."""
  for case in grid(run):
    run = case.run.with_values(SAELENS)
    yield Case(case.variant, run, trainers.train_saelens)


def yardstick(run: config_lib.RunConfig) -> Iterator[Case]:
  """SAELens as it is known from SmolLM2-135M at two learning rates."""
  for rate in YARDSTICK_RATES:
    values = YARDSTICK | {'optimizer.learning_rate': rate}
    yield Case(f'lr={rate:g}', run.with_values(values), trainers.train_saelens)


def architectures(run: config_lib.RunConfig) -> Iterator[Case]:
  """Every architecture and objective at one L0."""
  yield from _matched(run, ARCHITECTURES)


def transcoders(run: config_lib.RunConfig) -> Iterator[Case]:
  """Every transcoder at one L0; the recipe names a site and a target."""
  yield from _matched(run, TRANSCODERS, RATIOS[:1])


def components(run: config_lib.RunConfig) -> Iterator[Case]:
  """What goes beyond the paper, with and without, at one L0."""
  for seed in SEEDS:
    for coeff in _CONSTANT_COEFFS:
      values = {COEFF: coeff, 'seed': seed}
      yield Case('constant', run.with_values(values))
    for name, values in COMPONENTS.items():
      values = _CONTROLLED | {COEFF: 1e-3, 'seed': seed} | values
      yield Case(name, run.with_values(values))


def controller(run: config_lib.RunConfig) -> Iterator[Case]:
  """The controller from coefficients that are far off, to three targets."""
  for target in (10.0, 32.0, 100.0):
    for coeff in (1e-5, 1e-1):
      values = {'objective.target_l0': target, COEFF: coeff}
      yield Case(f'target={target:g}', run.with_values(_CONTROLLED | values))


def batch_topk(run: config_lib.RunConfig) -> Iterator[Case]:
  """BatchTopK, whose L0 is to stay when a threshold takes over."""
  for k in (10, 32, 100):
    values = {
      'sae.architecture': 'batch_topk', 'objective.name': 'aux_k', 'sae.k': k
    }  # fmt: skip
    yield Case(f'k={k}', run.with_values(values))


#: Studies by name.
STUDIES = {
  study.__name__: study
  for study in (
    ablation, grid, saelens, yardstick, architectures, transcoders, components,
    controller, batch_topk,
  )
}  # fmt: skip


def _matched(run, table, ratios=RATIOS):
  """Yields a table's cases at each learning rate."""
  for name, values in table.items():
    architecture, objective = name.split('/')
    for ratio in ratios[:1] if name.startswith(_SEARCHED) else ratios:
      rates = _at_ratio(run, ratio)
      if 'optimizer.threshold_learning_rate' in values:
        del rates['optimizer.threshold_learning_rate']
      named = {
        'sae.architecture': architecture,
        'objective.name': objective,
        COEFF: 1e-3,
      }
      values_here = _CONTROLLED | named | rates | values
      yield Case(f'{name},lr*{ratio:g}', run.with_values(values_here))


def _at_ratio(run, ratio):
  """Returns overrides that scale both learning rates of the recipe."""
  optimizer = run.optimizer
  return {
    'optimizer.learning_rate': ratio * optimizer.learning_rate,
    'optimizer.threshold_learning_rate': (
      ratio * optimizer.threshold_learning_rate
    ),
  }
