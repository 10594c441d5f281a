"""What each preset trains."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses

from ml_collections import config_dict

from configs import quickstart
from configs import smollm2_135m
from jumprelu_jax import architectures
from jumprelu_jax import config as config_lib
from jumprelu_jax.lm import sites

#: Config keys → values.
Values = Mapping[str, object]
RATE, THRESHOLD_RATE = (
  'optimizer.learning_rate',
  'optimizer.threshold_learning_rate',
)


@dataclasses.dataclass(frozen=True)
class Kind:
  """An architecture with its objective.

  Attributes:
    architecture: its name.
    objective: its name.
    sparsities: constant lambdas, or numbers of active latents, from sparse to
      dense; may be none.
    is_compared: whether it is more than tuned.
    values: what else its recipe asks for.
    own: what is tried, one at a time, in the last round of tuning.
  """

  architecture: str
  objective: str
  sparsities: tuple[float, ...]
  values: Values = dataclasses.field(default_factory=dict)
  own: tuple[Values, ...] = ()
  is_compared: bool = True

  @property
  def name(self) -> str:
    """Of its rows in tables."""
    return f'{self.architecture}/{self.objective}'

  def config(
    self, run: config_lib.RunConfig, values: Values
  ) -> config_lib.RunConfig:
    """Returns a run's config with this kind of SAE, and more values."""
    named = {
      'sae.architecture': self.architecture,
      'objective.name': self.objective,
    }
    return run.with_values({**named, **self.values, **values})

  @property
  def has_k(self) -> bool:
    """Whether k sets the sparsity, or else lambda."""
    kind = architectures.ARCHITECTURES[self.architecture]
    return kind.sparsity == architectures.K

  def at(self, sparsity: float) -> Values:
    """Returns the value that sets the sparsity."""
    if self.has_k:
      return {architectures.K: int(sparsity)}
    return {architectures.LAMBDA: sparsity}


@dataclasses.dataclass(frozen=True)
class Preset:
  """An experiment.

  Attributes:
    recipe: returns the config that all SAEs start from.
    values: what is changed in it.
    kinds: architectures that are compared; the first is the reference.
    places: where, for each seed.
    l0s: to which the controller leads kinds whose sparsity lambda sets.
    tuned_at: where learning rates and the rest are tuned.
    tuned_l0: at which L0.
    rates: learning rates that are tried.
    betas: Adam's, that are tried with the best of them.
    ablated_seeds: on which the ablations are trained, where the tuning was.
    yardstick: what is changed in a setting that another implementation's
      figures are known in; there the reference is trained alone, with the
      recipe's own values.
    yardstick_sparsities: at which.
  """

  recipe: Callable[[], config_dict.ConfigDict]
  values: Values
  kinds: tuple[Kind, ...]
  places: Mapping[int, tuple[sites.Site, ...]]
  l0s: tuple[int, ...]
  tuned_at: sites.Site
  tuned_l0: int
  rates: tuple[float, ...]
  betas: tuple[Values, ...] = ()
  ablated_seeds: tuple[int, ...] = ()
  yardstick: Values | None = None
  yardstick_sparsities: tuple[float, ...] = ()

  def run(self) -> config_lib.RunConfig:
    """Returns the config that all SAEs start from."""
    recipe = self.recipe().to_dict()
    run = config_lib.RunConfig.from_config_dict(recipe)
    return run.with_values(self.values)


_RESIDUAL = tuple(sites.Site('resid_post', layer) for layer in (1, 2))
_ALL = tuple(
  sites.Site(name, layer)
  for layer in (1, 2)
  for name in ('attn_z', 'mlp_out', 'resid_post')
)
_KS = (4, 8, 16, 32, 64)
_FREE_DECODER = {'sae.initial_decoder_norm': 0.1}
_GEOMETRIC_MEDIAN = {'sae.initial_b_dec': 'geometric_median'}
_OWN_OF_TOPK = ({'objective.aux_k_coeff': 1 / 8}, _GEOMETRIC_MEDIAN)

EMBEDDED = Preset(
  recipe=quickstart.get_config,
  # A million activations, each seen once, in as many steps as the quickstart.
  values={
    'sae.num_latents': 512,
    'train.batch_size': 512,
    'sweep.saes': (),
    'evaluation.importance_sequences': 64,
  },
  kinds=(
    Kind(
      'jumprelu',
      'l0',
      (1.2e-2, 5e-3, 2.2e-3, 1e-3, 4e-4),
      own=({'objective.bandwidth': 5e-3}, {'objective.bandwidth': 2e-2}),
    ),
    Kind(
      'gated',
      'gated',
      (0.4, 0.24, 0.13, 0.07, 0.03),
      own=(
        {'sae.initial_encoder_norm': 0.5},
        _GEOMETRIC_MEDIAN,
      ),
    ),
    # The form that the paper compares with; here the other one does better.
    Kind(
      'gated_free_norm',
      'gated_ri_l1',
      (),
      values=_FREE_DECODER,
      is_compared=False,
      own=(
        {'sae.initial_decoder_norm': 1.0},
        _GEOMETRIC_MEDIAN,
      ),
    ),
    Kind(
      'topk',
      'aux_k',
      _KS,
      own=_OWN_OF_TOPK,
    ),
    Kind(
      'batch_topk',
      'aux_k',
      _KS,
      own=_OWN_OF_TOPK,
    ),
    Kind(
      'relu',
      'ri_l1',
      (0.3, 0.18, 0.11, 0.06, 0.025),
      values=_FREE_DECODER | {'sae.initial_encoder_norm': 0.1},
      own=(
        {'sae.initial_decoder_norm': 1.0},
        _GEOMETRIC_MEDIAN,
      ),
    ),
  ),
  places={0: _ALL, 1: _RESIDUAL, 2: _RESIDUAL},
  l0s=_KS,
  tuned_at=sites.Site('resid_post', 2),
  tuned_l0=16,
  rates=(1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),
  betas=(
    {'optimizer.beta1': 0.0, 'optimizer.beta2': 0.999},
    {'optimizer.beta1': 0.9, 'optimizer.beta2': 0.98},
    {'optimizer.beta1': 0.9, 'optimizer.beta2': 0.999},
  ),
  ablated_seeds=(0, 1, 2),
)

_SMOL_KS = (8, 16, 32, 64)
SMOLLM2 = Preset(
  recipe=smollm2_135m.get_config,
  # A million activations, each seen once.
  values={
    'activations.sequences': 4_032,
    'train.steps': 1_000,
    'objective.sparsity_warmup_steps': 200,
    'optimizer.warmup_steps': 100,
    'objective.aux_k': 288,
    'objective.dead_after_tokens': 100_000,
    'sweep.saes': (),
    'evaluation.importance_sequences': 16,
  },
  kinds=(
    Kind('jumprelu', 'l0', ()),
    Kind('gated', 'gated', ()),
    Kind('topk', 'aux_k', _SMOL_KS),
  ),
  places={0: (sites.Site('resid_post', 10),)},
  l0s=_SMOL_KS,
  tuned_at=sites.Site('resid_post', 10),
  tuned_l0=32,
  rates=(1e-3, 2e-3, 4e-3, 8e-3),
  # 298 thousand activations, seen seven times; SAELens is trained on the same
  # by `experiments.small_budget --study=yardstick`. Its L0 there is 18.
  yardstick={
    'activations.sequences': 1_168,
    'train.steps': 2_000,
    'objective.sparsity_warmup_steps': 400,
    'optimizer.warmup_steps': 200,
  },
  yardstick_sparsities=(1.2e-3, 1.5e-3),
)

#: Presets by the names that --preset takes.
PRESETS = {'embedded': EMBEDDED, 'smollm2': SMOLLM2}
