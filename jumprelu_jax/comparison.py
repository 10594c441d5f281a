"""Comparison of architectures at matched L0, inside the measured range.

Two SAEs are alike in sparsity only by chance, so a metric is interpolated to a
given L0 along each architecture's front: linear in log L0 between neighbouring
runs of one seed. A front goes through its runs as they are; one that is not
monotone keeps its bumps, and runs of the same L0 count as their mean. Nothing
is extrapolated: outside the range that both architectures' runs of a seed have
measured there is no number. Runs whose L0 has not settled are left out.

Differences are taken within a seed, then averaged. Their interval is the
percentile bootstrap's over seeds, which says how much training again would
change; the held-out text is the same for all. It is too narrow where seeds are
few: of 95% intervals for normal differences, 53% cover the truth with 2 seeds,
76% with 3, 81% with 4, 84% with 5, 90% with 10 (simulated). With 2 or 3 seeds
it is just the range of the differences, and the table says so; with one there
is none.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import os

import numpy as np

from jumprelu_jax import errors
from jumprelu_jax import finished
from jumprelu_jax import progress
from jumprelu_jax import results

Kind = tuple[str, str]
Row = finished.Row

#: Columns of comparison.csv.
COLUMNS = (
    *finished.SETTING, *finished.PLACE, *finished.KIND, 'reference', 'l0',
    'metric', 'value', 'reference_value', 'difference', 'low', 'high',
    'interval', 'num_seeds', 'num_unsettled',
)  # fmt: skip
#: Metrics that are compared, where runs have them.
METRICS = (
    'delta_lm_loss', 'fvu', 'kl', 'dead_fraction', 'frac_over_1pct',
    'frac_over_10pct', 'relative_reconstruction_bias', 'importance_uniformity',
)  # fmt: skip

_RESAMPLES = 10_000
_MAX_RANGE_SEEDS = 3  # up to which an interval is the range of the seeds


@dataclasses.dataclass(frozen=True)
class Front:
  """A metric between measured L0s.

  Attributes:
    l0s: active latents a token, > 0, increasing.
    values: the metric at each.
  """

  l0s: tuple[float, ...]
  values: tuple[float, ...]

  def at(self, l0: float) -> float | None:
    """Returns the metric at an L0, linear in its log; None outside."""
    if not self.l0s[0] <= l0 <= self.l0s[-1]:
      return None
    return float(np.interp(np.log(l0), np.log(self.l0s), self.values))


def front_of(rows: Iterable[Row], metric: str) -> Front | None:
  """Returns the front of settled runs that have a metric; None without any.

  A run with L0 = 0 has no place on a log axis and is left out.
  """
  at_l0 = {}
  for row in rows:
    value = finished.number(row, metric)
    if row['l0_settled'] and row['l0'] > 0 and value is not None:
      at_l0.setdefault(row['l0'], []).append(value)
  if not at_l0:
    return None
  l0s = sorted(at_l0)
  return Front(tuple(l0s), tuple(float(np.mean(at_l0[l0])) for l0 in l0s))


def fronts_by_seed(rows: Iterable[Row], metric: str) -> dict[int, Front]:
  """Returns the front of each seed that has one."""
  fronts = {
    seed: front_of(of_one, metric)
    for (seed,), of_one in finished.groups(rows, ('seed',)).items()
  }
  return {seed: front for seed, front in fronts.items() if front is not None}


def reference_of(rows: Sequence[Row], name: str) -> Kind:
  """Returns the (architecture, objective) that others are held against.

  Args:
    rows: from `finished.read`.
    name: 'jumprelu/l0'; without an objective, the architecture's only one, or
      of several l0.

  Raises:
    errors.InputError: there is none, or the objective is to be named.
  """
  kinds = list(finished.groups(rows, finished.KIND))
  architecture, _, objective = name.partition('/')
  fitting = [
    kind for kind in kinds
    if kind[0] == architecture and objective in ('', kind[1])
  ]  # fmt: skip
  if len(fitting) > 1 and (architecture, 'l0') in fitting:
    return architecture, 'l0'
  if len(fitting) == 1:
    return fitting[0]
  what = f'the runs have {len(fitting) or "no"} {name} to compare with'
  raise errors.InputError(
    f'--reference={name}: {what}; add a run of it or give one of '
    f'{", ".join("/".join(kind) for kind in kinds)}.'
  )


def interval(
  differences: Sequence[float], level: float = 0.95
) -> tuple[float | None, float | None, str]:
  """Returns the bootstrap interval of a mean over seeds.

  Percentiles of the means of 10,000 resamples, always the same ones.

  Args:
    differences: one for each seed.
    level: share of resamples inside.

  Returns:
    Low and high, and what they are: 'bootstrap'; 'range' for up to three seeds,
    where these percentiles are the least and the largest difference; '' and no
    numbers for one seed.
  """
  n = len(differences)
  if n < 2:
    return None, None, ''
  picked = np.random.default_rng(0).integers(n, size=(_RESAMPLES, n))
  means = np.asarray(differences)[picked].mean(axis=1)
  tail = 50 * (1 - level)
  low, high = np.percentile(means, (tail, 100 - tail))
  kind = 'bootstrap' if n > _MAX_RANGE_SEEDS else 'range'
  return float(low), float(high), kind


def compare(
  rows: Sequence[Row],
  reference: Kind,
  l0s: Sequence[float] = (),
  metrics: Sequence[str] = METRICS,
) -> tuple[list[dict[str, object]], list[str]]:
  """Holds every architecture against the reference at matched L0.

  Only runs of one model, place, number of latents and length are held against
  each other.

  Args:
    rows: from `finished.read`.
    reference: from `reference_of`.
    l0s: where to compare; by default at 1, 2, 5, 10, … wherever both are
      measured, or in the middle of that range if none of these is in it.
    metrics: what to compare.

  Returns:
    Rows with `COLUMNS`: value, reference_value and difference (first minus
    second) are means over the seeds that have measured both at this L0, in the
    metric's units. And lines about what was left out, and why.
  """
  table, notes = [], []
  for metric in metrics:
    if all(finished.number(row, metric) is None for row in rows):
      notes.append(f'{metric} is in no run')
      metrics = [other for other in metrics if other != metric]
  alike = (*finished.SETTING, *finished.PLACE)
  for key, here in finished.groups(rows, alike).items():
    place = dict(zip(alike, key, strict=True))
    kinds = finished.groups(here, finished.KIND)
    notes += _about_unsettled(place, here)
    if reference not in kinds:
      notes.append(f'{_where(place)}: no {"/".join(reference)} to compare with')
      continue
    if len(kinds) == 1:
      notes.append(f'{_where(place)}: nothing but {"/".join(reference)}')
    for kind, ours in kinds.items():
      if kind == reference:
        continue
      for metric in metrics:
        pair = _Pair(kind, ours, reference, kinds[reference], metric)
        found, why_not = pair.compare(l0s)
        table += [place | row for row in found]
        notes += [f'{_where(place)}, {"/".join(kind)}: {n}' for n in why_not]
  return table, list(dict.fromkeys(notes))


def save(
  rows: Sequence[Row],
  reference: Kind,
  path: str | os.PathLike,
  l0s: Sequence[float] = (),
) -> list[dict[str, object]]:
  """Writes what `compare` returns, says its notes, and returns its table."""
  table, notes = compare(rows, reference, l0s)
  results.write(table, path, COLUMNS)
  for note in notes:
    progress.say(f'comparison: {note}')
  return table


@dataclasses.dataclass(frozen=True)
class _Pair:
  """An architecture and the reference at one place."""

  kind: Kind
  ours: Sequence[Row]
  reference: Kind
  theirs: Sequence[Row]
  metric: str

  def compare(self, l0s):
    """Returns rows, and lines about what is missing."""
    a = fronts_by_seed(self.ours, self.metric)
    b = fronts_by_seed(self.theirs, self.metric)
    if not a or not b:
      settled = any(r['l0_settled'] for r in (self.theirs if a else self.ours))
      return [], [f'{self.metric} is not in all runs'] if settled else []
    pairs = [(a[seed], b[seed]) for seed in a if seed in b]
    if not pairs:
      return [], ['no seed in common with the reference']
    ranges = [(max(x.l0s[0], y.l0s[0]), min(x.l0s[-1], y.l0s[-1]))
              for x, y in pairs]  # fmt: skip
    ranges = [(low, high) for low, high in ranges if low <= high]
    if not ranges:
      return [], ['no L0 in common with the reference']
    rows, notes = [], []
    for l0 in l0s or _default_l0s(ranges):
      row = self._at(l0, pairs)
      if row:
        rows.append(row)
      elif l0s:
        low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
        notes.append(
          f'L0 {l0:g} is not in the common range {low:.4g} to {high:.4g}'
        )
    return rows, notes

  def _at(self, l0, pairs):
    """Returns the row of an L0, None if no seed has measured both there."""
    found = [(x.at(l0), y.at(l0)) for x, y in pairs]
    found = [(x, y) for x, y in found if x is not None and y is not None]
    if not found:
      return None
    differences = [x - y for x, y in found]
    low, high, kind = interval(differences)
    return {
      'architecture': self.kind[0],
      'objective': self.kind[1],
      'reference': '/'.join(self.reference),
      'l0': float(l0),
      'metric': self.metric,
      'value': float(np.mean([x for x, _ in found])),
      'reference_value': float(np.mean([y for _, y in found])),
      'difference': float(np.mean(differences)),
      'low': low,
      'high': high,
      'interval': kind,
      'num_seeds': len(found),
      'num_unsettled': sum(
        not row['l0_settled'] for row in (*self.ours, *self.theirs)
      ),
    }


def _default_l0s(ranges):
  """1, 2, 5, 10, … inside of the ranges' hull; or a middle, in log L0."""
  low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
  powers = range(int(np.floor(np.log10(low))), int(np.log10(high)) + 2)
  series = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
  inside = [l0 for l0 in series if low <= l0 <= high]
  if inside:
    return inside
  low, high = max(ranges, key=lambda r: r[1] / r[0])  # the widest
  return [low] if low == high else [float(np.sqrt(low * high))]


def _about_unsettled(place, rows):
  """Yields a line for each architecture that has runs to leave out."""
  for kind, of_one in finished.groups(rows, finished.KIND).items():
    l0s = [f'{row["l0"]:.4g}' for row in of_one if not row['l0_settled']]
    if l0s:
      yield (
        f'{_where(place)}, {"/".join(kind)}: {len(l0s)} of {len(of_one)} runs '
        f'left out, L0 has not settled (L0 {", ".join(l0s)})'
      )


def _where(place):
  return f'{place["model"]}, {place["site"]} of layer {place["layer"]}'
