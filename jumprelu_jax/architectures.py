"""The table of architectures: how each begins, is trained, and is released."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import itertools

from jax import numpy as jnp

from jumprelu_jax import config as config_lib
from jumprelu_jax import errors
from jumprelu_jax import objectives
from jumprelu_jax.sae import gated
from jumprelu_jax.sae import jumprelu
from jumprelu_jax.sae import released
from jumprelu_jax.sae import relu
from jumprelu_jax.sae import topk
from jumprelu_jax.sae import trained

LAMBDA = 'objective.sparsity_coeff'
K = 'sae.k'

# What thresholds can learn from; L1 needs a decoder that cannot make up for
# small activations.
_THRESHOLDED = frozenset({
  'l0', 'target_l0', 'target_mean_l0', 'quadratic_frequency',
  'tanh', 'pre_activation', 'ri_l1', 'aux_k',
})  # fmt: skip
_SELECTED = frozenset({'reconstruction', 'aux_k'})


def _fold(sae, states, scales):
  del states
  return sae.fold(*scales)


def _fold_at_threshold(sae, states, scales):
  return sae.fold_at(states['selection_threshold']['threshold'], *scales)


@dataclasses.dataclass(frozen=True)
class Architecture:
  """How an architecture is begun, trained and released.

  Attributes:
    init: (key, widths, config.sae) → parameters.
    trained_by: names of the objectives that can train it.
    sparsity: the config key that sets its sparsity: `LAMBDA` or `K`.
    reconstruct: what is compared with the target.
    components: names of the components that it needs.
    release: (parameters, components' states, scales) → released SAE.
    num_sites: that it is trained on: 2 for a transcoder.
  """

  init: Callable[..., trained.Trained]
  trained_by: frozenset[str] = _THRESHOLDED
  sparsity: str = LAMBDA
  reconstruct: objectives.Reconstruction = objectives.whole
  components: tuple[str, ...] = ()
  release: Callable[..., released.Released] = _fold
  num_sites: int = 1


def _with_skip(init):
  """Returns an initialiser that adds a skip of zeros."""

  def with_skip(key, widths, config):
    sae = init(key, widths, config)
    return sae.replace(W_skip=jnp.zeros(widths))

  return with_skip


_JUMPRELU = Architecture(jumprelu.init, _THRESHOLDED | {'l1'})
_TOPK = Architecture(topk.init, _SELECTED, K)
_BATCH_TOPK = Architecture(
  topk.init_batch,
  _SELECTED,
  K,
  components=('selection_threshold',),
  release=_fold_at_threshold,
)


def _transcoder(architecture, *, has_skip=False):
  init = architecture.init
  return dataclasses.replace(
    architecture, init=_with_skip(init) if has_skip else init, num_sites=2
  )


def _matryoshka(architecture):
  return dataclasses.replace(architecture, reconstruct=objectives.nested)


#: Architectures by the names that configs and results.csv use.
ARCHITECTURES = {
  'jumprelu': _JUMPRELU,
  'jumprelu_raw_threshold': dataclasses.replace(
    _JUMPRELU, init=jumprelu.init_raw_threshold
  ),
  'jumprelu_free_norm': Architecture(jumprelu.init_free_norm),
  'gated': Architecture(gated.init, frozenset({'gated', 'aux_k'})),
  'gated_free_norm': Architecture(
    gated.init_free_norm, frozenset({'gated_ri_l1', 'aux_k'})
  ),
  'topk': _TOPK,
  'batch_topk': _BATCH_TOPK,
  'relu': Architecture(relu.init, frozenset({'ri_l1', 'tanh', 'aux_k'})),
  'matryoshka_jumprelu': _matryoshka(_JUMPRELU),
  'matryoshka_batch_topk': _matryoshka(_BATCH_TOPK),
  'jumprelu_transcoder': _transcoder(_JUMPRELU),
  'jumprelu_skip_transcoder': _transcoder(_JUMPRELU, has_skip=True),
  'topk_transcoder': _transcoder(_TOPK),
  'topk_skip_transcoder': _transcoder(_TOPK, has_skip=True),
}


def of(run: config_lib.RunConfig) -> Architecture:
  """Returns a run's architecture.

  Raises:
    errors.InputError: its name is not known.
  """
  name = run.sae.architecture
  if name not in ARCHITECTURES:
    raise errors.InputError(
      f'config.sae.architecture={name!r} is not known; expected one of '
      f'{", ".join(ARCHITECTURES)}.'
    )
  return ARCHITECTURES[name]


def sparsity(run: config_lib.RunConfig) -> float:
  """Returns the number that sets an SAE's sparsity: k or lambda."""
  if of(run).sparsity == K:
    return run.sae.k
  return run.objective.sparsity_coeff


def name(run: config_lib.RunConfig) -> str:
  """Returns an SAE's name in a sweep, and that of its folder."""
  return f'{run.sae.architecture}_{run.objective.name}_{sparsity(run):g}'


def check(run: config_lib.RunConfig) -> None:
  """Checks what a run's architecture asks of the rest of its config.

  Raises:
    errors.InputError: something does not fit.
  """
  architecture, name = of(run), run.sae.architecture
  parts = objectives.split(run.objective.name)
  for part in parts:
    if part not in architecture.trained_by:
      raise errors.InputError(
        f'config.objective.name={run.objective.name!r}: {name} cannot be '
        f'trained by {part!r}; it can by '
        f'{", ".join(sorted(architecture.trained_by))}.'
      )
  if architecture.sparsity == LAMBDA and not _limits_l0(parts):
    raise errors.InputError(
      f'config.objective.name={run.objective.name!r}: nothing keeps {name} '
      'sparse; join a sparsity penalty to it by +, such as l0.'
    )
  if architecture.sparsity == K and run.objective.components:
    raise errors.InputError(
      f'config.objective.components={run.objective.components}: {name} has '
      'neither a sparsity coefficient nor a bandwidth; leave it empty.'
    )
  aims = [part for part in parts if part.startswith('target_')]
  if aims and 'l0_controller' in run.objective.components:
    raise errors.InputError(
      f"config.objective.components: 'l0_controller' and {aims[0]!r} both aim "
      "at target_l0; use one, such as the objective 'l0' with the controller."
    )
  has_bandwidth = 'l0' in architecture.trained_by
  if 'adaptive_bandwidth' in run.objective.components and not has_bandwidth:
    raise errors.InputError(
      f'config.objective.components: {name} has no bandwidth; leave '
      "'adaptive_bandwidth' away."
    )
  if run.sae.initial_frequency and name.startswith('gated'):
    raise errors.InputError(
      f'config.sae.initial_frequency={run.sae.initial_frequency}: {name} has '
      'two biases in place of b_enc; set it to 0.'
    )
  _check_prefixes(run, architecture)
  _check_sites(run, architecture)
  _check_aux_k(run, parts)


def _limits_l0(parts):
  return bool(set(parts) - {'reconstruction', 'aux_k', 'pre_activation'})


def _check_prefixes(run, architecture):
  prefixes, M = run.objective.prefixes, run.sae.num_latents
  if architecture.reconstruct is not objectives.nested:
    return
  is_increasing = all(a < b for a, b in itertools.pairwise((0, *prefixes)))
  if not prefixes or not is_increasing or prefixes[-1] != M:
    raise errors.InputError(
      f'config.objective.prefixes={prefixes}: expected numbers of latents that '
      f'increase and end in config.sae.num_latents={M}, such as '
      f'{M // 4},{M // 2},{M}.'
    )


def _check_sites(run, architecture):
  has_target = bool(run.lm.target_site)
  if has_target != (architecture.num_sites == 2):
    need = 'needs' if architecture.num_sites == 2 else 'has no'
    raise errors.InputError(
      f'config.lm.target_site={run.lm.target_site!r}: '
      f'{run.sae.architecture} {need} target; a transcoder reads lm.site and '
      'predicts lm.target_site, an SAE leaves that empty.'
    )


def _check_aux_k(run, parts):
  if 'aux_k' in parts and run.objective.aux_k > run.sae.num_latents:
    raise errors.InputError(
      f'config.objective.aux_k={run.objective.aux_k} is more than '
      f'config.sae.num_latents={run.sae.num_latents}; take half of d_model.'
    )
