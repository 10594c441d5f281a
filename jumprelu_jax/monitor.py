"""What training warns of: likely causes, and what to do.

`of_rows` sees the first batch. Otherwise pure functions of the records that are
logged; each warning is given at the first record that shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import math

import numpy as np

from jumprelu_jax import architectures
from jumprelu_jax import config as config_lib

Record = Mapping[str, float]

#: Below, most rows have no latent that fires.
COLLAPSED_L0 = 0.5
# Share of all latents; and growth from one record to the next, to a share that
# is no mere recovery.
_EXPLODED_SHARE, _EXPLODED_GROWTH, _GROWN_SHARE = 0.25, 5.0, 0.05
# Of the steps, after lambda's warm-up, in which L0 may be as it was at first.
_SETTLING = 0.1
_DEAD = 0.9
# Of the mean squared norm; zeros have 1, more or less, as batches differ.
_LARGE_ERROR = 1.05
# Passes over the rows, from which on what an SAE learns of them by heart may
# show.
_MANY_PASSES = 10
# Of the median norm, from which on a row is an outlier; and the share of the
# squared norm with which outliers decide what is learned.
_OUTLIER, _LARGE_SHARE = 10, 0.5


def of_rows(
  run: config_lib.RunConfig, num_rows: int, share: float
) -> list[str]:
  """Returns what the rows warn of that a run is trained on.

  Args:
    run: the config.
    num_rows: in all.
    share: `outlier_share` of some of them.
  """
  found, seen = [], run.train.steps * run.train.batch_size
  if seen > _MANY_PASSES * num_rows:
    found.append(
      f'each of the {num_rows:,} rows is seen {seen / num_rows:.1f} times '
      f'(config.train.steps={run.train.steps:,} of batch_size='
      f'{run.train.batch_size:,}): the SAE may learn them by heart. Harvest '
      'more text, or train for fewer steps.'
    )
  if share > _LARGE_SHARE:
    found.append(f'{_says_outliers(share)}.')
  return found


def outlier_share(rows_ND: np.ndarray) -> float:
  """Returns the share of the squared norm that outliers have.

  Rows whose norm is more than ten times the median, as filters take them.
  """
  squared_N = np.square(rows_ND.astype(np.float64)).sum(axis=1)
  total = squared_N.sum()
  if not 0 < total < math.inf:
    return 0.0  # of zeros, or of a failing model, of which others tell
  is_outlier_N = squared_N > _OUTLIER**2 * np.median(squared_N)
  return float(squared_N[is_outlier_N].sum() / total)


def _says_outliers(share):
  return (
    f'rows of more than {_OUTLIER} times the median norm, such as attention '
    f'sinks, have {share:.1%} of the squared norm; they decide the scale and '
    'the loss, so that little else is learned. Set '
    f'config.activations.max_norm_multiple={_OUTLIER}, which leaves them out'
  )


def new(
  records: Sequence[Record], run: config_lib.RunConfig, share: float = 0.0
) -> list[str]:
  """Returns what the last record warns of and none before it did.

  Args:
    records: of a run's curve so far, in order.
    run: the config.
    share: `outlier_share` of the rows; where it is large, lambda is not blamed.
  """
  if not records:
    return []
  befores = (None, *records[:-1])
  found = []
  for shows, says in _WARNINGS:
    pairs = zip(befores, records, strict=True)
    first = next((r for b, r in pairs if shows(b, r, run)), None)
    if first is records[-1]:
      found.append(says(records[-1], run, share))
  return found


def _collapses(before, record, run):
  del before, run
  return record['l0'] < COLLAPSED_L0


def _says_collapse(record, run, share):
  what = f'L0 collapsed to {record["l0"]:.3g}: hardly a latent fires.'
  if share > _LARGE_SHARE:
    return f'{what} {_says_outliers(share)}.'
  return (
    f'{what} {_too_sparse(run)}, or thresholds have outrun the activations: '
    'lower config.optimizer.threshold_learning_rate.'
  )


def _ends_with_nothing(before, record, run):
  del before
  return record['step'] >= run.train.steps and record['l0'] < COLLAPSED_L0


def _says_end(record, run, share):
  del run, share
  return (
    f'training ends at an L0 of {record["l0"]:.3g}: the SAE predicts little '
    'more than a constant, and its L0 does not count as settled. See the '
    'warning of the step at which L0 collapsed.'
  )


def _is_ready(record, run):
  """True once lambda has warmed up, and what it does has shown."""
  ready = run.objective.sparsity_warmup_steps + _SETTLING * run.train.steps
  return record['step'] > ready


def _errs(before, record, run):
  del before
  return (
    _is_ready(record, run) and record.get('squared_error', 0) > _LARGE_ERROR
  )


def _says_error(record, run, share):
  if share > _LARGE_SHARE:
    remedy = _says_outliers(share)
  else:
    remedy = (
      'Lower config.optimizer.learning_rate='
      f'{run.optimizer.learning_rate:g}, or set config.sae.initial_b_dec=mean'
    )
  return (
    f'the squared error is {record["squared_error"]:.3g} of the mean squared '
    f'norm, more than that of predicting zeros. {remedy}.'
  )


def _explodes(before, record, run):
  if not _is_ready(record, run):
    return False
  share = record['l0'] / run.sae.num_latents
  has_grown = (
    before is not None
    and share > _GROWN_SHARE
    and record['l0'] > _EXPLODED_GROWTH * before['l0']
  )
  return share > _EXPLODED_SHARE or has_grown


def _says_explosion(record, run, share):
  del share
  return (
    f'L0 is {record["l0"]:.4g} of {run.sae.num_latents:,} latents after '
    f"lambda's warm-up. {_too_dense(run)}; if the loss rises too, lower "
    'config.optimizer.learning_rate.'
  )


def _dies(before, record, run):
  del before, run
  return record['dead_fraction'] > _DEAD


def _says_death(record, run, share):
  cause = _says_outliers(share) if share > _LARGE_SHARE else _too_sparse(run)
  return (
    f'{record["dead_fraction"]:.0%} of the latents have not fired in '
    f'{run.objective.dead_after_tokens:,} tokens. {cause}; or '
    'activations are off centre: set config.sae.initial_b_dec=mean; or revive '
    'them: add +aux_k to config.objective.name.'
  )


def _drifts(before, record, run):
  del before, run
  return record.get('extreme_thresholds', 0) > 0


def _says_drift(record, run, share):
  del share
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
  (_ends_with_nothing, _says_end),
  (_errs, _says_error),
  (_explodes, _says_explosion),
  (_dies, _says_death),
  (_drifts, _says_drift),
)
