"""What a training curve warns of: likely causes, and what to do.

Pure functions of the records that are logged; each warning is given at the
first record that shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

from jumprelu_jax import architectures
from jumprelu_jax import config as config_lib

Record = Mapping[str, float]

# Below, most rows have no latent that fires.
_COLLAPSED_L0 = 0.5
# Share of all latents; and growth from one record to the next, to a share that
# is no mere recovery.
_EXPLODED_SHARE, _EXPLODED_GROWTH, _GROWN_SHARE = 0.25, 5.0, 0.05
# Of the steps, after lambda's warm-up, in which L0 may be as it was at first.
_SETTLING = 0.1
_DEAD = 0.9


def new(records: Sequence[Record], run: config_lib.RunConfig) -> list[str]:
  """Returns what the last record warns of and none before it did.

  Args:
    records: of a run's curve so far, in order.
    run: the config.
  """
  if not records:
    return []
  befores = (None, *records[:-1])
  found = []
  for shows, says in _WARNINGS:
    pairs = zip(befores, records, strict=True)
    first = next((r for b, r in pairs if shows(b, r, run)), None)
    if first is records[-1]:
      found.append(says(records[-1], run))
  return found


def _collapses(before, record, run):
  del before, run
  return record['l0'] < _COLLAPSED_L0


def _says_collapse(record, run):
  return (
    f'L0 collapsed to {record["l0"]:.3g}: hardly a latent fires. '
    f'{_too_sparse(run)}, or thresholds have outrun the activations: lower '
    'config.optimizer.threshold_learning_rate.'
  )


def _explodes(before, record, run):
  ready = run.objective.sparsity_warmup_steps + _SETTLING * run.train.steps
  if record['step'] <= ready:
    return False
  share = record['l0'] / run.sae.num_latents
  has_grown = (
    before is not None
    and share > _GROWN_SHARE
    and record['l0'] > _EXPLODED_GROWTH * before['l0']
  )
  return share > _EXPLODED_SHARE or has_grown


def _says_explosion(record, run):
  return (
    f'L0 is {record["l0"]:.4g} of {run.sae.num_latents:,} latents after '
    f"lambda's warm-up. {_too_dense(run)}; if the loss rises too, lower "
    'config.optimizer.learning_rate.'
  )


def _dies(before, record, run):
  del before, run
  return record['dead_fraction'] > _DEAD


def _says_death(record, run):
  return (
    f'{record["dead_fraction"]:.0%} of the latents have not fired in '
    f'{run.objective.dead_after_tokens:,} tokens. {_too_sparse(run)}; or '
    'activations are off centre: set config.sae.initial_b_dec=mean; or revive '
    'them: add +aux_k to config.objective.name.'
  )


def _drifts(before, record, run):
  del before, run
  return record.get('extreme_thresholds', 0) > 0


def _says_drift(record, run):
  return (
    f'{record["extreme_thresholds"]:.2%} of the thresholds are near the limits '
    'of float32 (below 1e-30 or above 1e30) and will not come back. Lower '
    f'config.optimizer.threshold_learning_rate='
    f'{run.optimizer.threshold_learning_rate:g}, or widen '
    f'config.objective.bandwidth={run.objective.bandwidth:g}.'
  )


def _too_sparse(run):
  if architectures.of(run).sparsity == architectures.K:
    return f'Raise config.sae.k={run.sae.k}'
  return (
    'Lower config.objective.sparsity_coeff='
    f'{run.objective.sparsity_coeff:g} or lengthen its warm-up'
  )


def _too_dense(run):
  if architectures.of(run).sparsity == architectures.K:
    return f'Lower config.sae.k={run.sae.k}'
  return (
    'Raise config.objective.sparsity_coeff='
    f'{run.objective.sparsity_coeff:g}, or widen config.objective.bandwidth='
    f'{run.objective.bandwidth:g}, so that thresholds get a gradient'
  )


_WARNINGS: tuple[tuple[Callable, Callable], ...] = (
  (_collapses, _says_collapse),
  (_explodes, _says_explosion),
  (_dies, _says_death),
  (_drifts, _says_drift),
)
