"""The search for each architecture's recipe: the same budget for all.

Three rounds, each around the best of those before: the learning rate; Adam's
betas; and what is the architecture's own. All are led to one L0, by k or by the
controller, and the least FVU on held-out text wins.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from experiments.reproduce import presets
from jumprelu_jax import architectures
from jumprelu_jax import config as config_lib

#: Thresholds' learning rate over that of the rest, as in the quickstart.
THRESHOLD_RATIO = 20 / 7
# Lambda from which the controller starts, times the L0 that it is to reach.
_COEFF = 0.016
_ROUNDS = 3
_TOLERANCE = 0.05

Train = Callable[[Mapping[str, config_lib.RunConfig]], Sequence[dict[str, Any]]]


def at_rate(rate: float) -> presets.Values:
  """Returns both learning rates."""
  return {
    presets.RATE: rate,
    presets.THRESHOLD_RATE: THRESHOLD_RATIO * rate,
  }


def rounds(
  preset: presets.Preset, kind: presets.Kind
) -> tuple[tuple[presets.Values, ...], ...]:
  """Returns what each round tries on top of the best before."""
  return tuple(map(at_rate, preset.rates)), preset.betas, kind.own


def at_l0(kind: presets.Kind, l0: float) -> presets.Values:
  """Returns what leads a kind of SAE to an L0: k, or the controller."""
  if kind.has_k:
    return kind.at(l0)
  return {
    architectures.LAMBDA: _COEFF / l0,
    'objective.components': ('l0_controller',),
    'objective.target_l0': float(l0),
  }


def tune(
  preset: presets.Preset, run: config_lib.RunConfig, train: Train
) -> tuple[dict[str, presets.Values], list[dict[str, Any]]]:
  """Searches a recipe for each kind of the preset.

  Args:
    preset: what is compared, and what is tried.
    run: the config that all SAEs start from.
    train: trains and evaluates SAEs by name; a row of results for each.

  Returns:
    Each kind's best values, by its name; and the rows of all that was tried,
    with `round`, `tried` and `best`: whether it was the best until then.
  """
  best = {kind.name: ({}, None) for kind in preset.kinds}
  table = []
  for number in range(_ROUNDS):
    tried = [
      (kind, {**best[kind.name][0], **values})
      for kind in preset.kinds
      for values in rounds(preset, kind)[number]
    ]
    if not tried:
      continue
    rows = train(
      {
        f'{number}_{index}_{kind.architecture}': kind.config(
          run, {**at_l0(kind, preset.tuned_l0), **values}
        )
        for index, (kind, values) in enumerate(tried)
      }
    )
    new = [
      row | {'round': number, 'tried': describe(values)}
      for (_, values), row in zip(tried, rows, strict=True)
    ]
    for (kind, values), row in zip(tried, new, strict=True):
      if _is_better(row, best[kind.name][1], preset.tuned_l0):
        best[kind.name] = values, row
    chosen = [row for _, row in best.values()]
    table += [row | {'best': any(row is one for one in chosen)} for row in new]
  return {name: values for name, (values, _) in best.items()}, table


def describe(values: presets.Values) -> str:
  """Returns values as they stand in a table: 'beta1=0.9 beta2=0.98'."""
  words = [
    f'{key.split(".")[1]}={value:.4g}'
    if isinstance(value, float)
    else f'{key.split(".")[1]}={value}'
    for key, value in values.items()
  ]
  return ' '.join(words)


def _is_better(row, other, l0):
  """True if a row is at the L0 and has less FVU than another at it."""
  if other is None or _is_at(row, l0) != _is_at(other, l0):
    return other is None or _is_at(row, l0)
  return row['fvu'] < other['fvu']


def _is_at(row, l0):
  """True if a row's L0 is within 5% of an L0: FVU falls as L0 rises."""
  return abs(row['l0'] / l0 - 1) < _TOLERANCE
