"""Architectures compared by their latents' scores, at matched L0."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import os

import numpy as np

from jumprelu_jax import comparison
from jumprelu_jax import errors
from jumprelu_jax import finished
from jumprelu_jax.autointerp import table
from jumprelu_jax.autointerp.table import Scores

Row = dict[str, object]

#: What SAEs must share to be in one line of the table.
PLACE = ('model', 'layer', 'site', 'num_latents')
#: Columns of the table.
COLUMNS = (
  *PLACE, 'measure', 'l0_group', 'architecture', 'l0', 'num_saes', 'scored',
  'latents', 'mean', 'low', 'high', 'interval', 'weighted_mean', 'weighted_low',
  'weighted_high', 'above_0.9',
)  # fmt: skip
#: Columns of the regression's table.
ODDS = (
  'measure', 'reference', 'architecture', 'odds_ratio', 'low', 'high',
  'reference_above', 'above', 'reference_latents', 'latents', 'note',
)  # fmt: skip

# What must not differ, or scores are of different things.
_ALIKE = ('settings', 'prompts_version', 'answered_by', 'text')


def read(folders: Sequence[str | os.PathLike]) -> list[Scores]:
  """Reads several folders of scores.

  Raises:
    errors.InputError: one is not readable, is given twice, or was made in
      another way than the first.
  """
  found = [table.read(folder) for folder in folders]
  if len({one.folder.resolve() for one in found}) < len(found):
    raise errors.InputError('--scores names a folder twice; name each once.')
  for one in found[1:]:
    for name in _ALIKE:
      first, other = found[0].about.get(name), one.about.get(name)
      if first != other:
        raise errors.InputError(
          f'{one.folder} was scored with {name}={other!r}, {found[0].folder} '
          f'with {first!r}; score both alike.'
        )
  return found


def table_of(saes: Sequence[Scores], tolerance: float) -> list[Row]:
  """Returns averages for each place, measure, L0 and architecture.

  Args:
    saes: from `read`.
    tolerance: SAEs whose L0 is up to this share above the least of a group
      belong to it.

  Returns:
    Rows with COLUMNS: means over an architecture's SAEs in a group. `interval`
    is what low and high are: 'latents', of one SAE, the bootstrap over its
    latents; else over SAEs, as `comparison.interval` gives it.
  """
  if not tolerance >= 0:
    raise errors.InputError(
      f'--l0_tolerance={tolerance}: expected a share of 0 or more.'
    )
  rows = []
  for place, here in _groups(saes, PLACE).items():
    for group in _by_l0(here, tolerance):
      l0 = float(np.mean([sae.about['l0'] for sae in group]))
      for (architecture,), ours in _groups(group, ('architecture',)).items():
        for measure in ours[0].about['scores']:
          rows.append(
            dict(zip(PLACE, place, strict=True))
            | {'measure': measure, 'l0_group': l0, 'architecture': architecture}
            | _averages(ours, measure)
          )
  order = list(saes[0].about['scores'])
  return sorted(
    rows,
    key=lambda row: (
      *(row[name] for name in PLACE), order.index(row['measure']),
      row['l0_group'], row['architecture'],
    ),
  )  # fmt: skip


def odds(saes: Sequence[Scores], measure: str, reference: str) -> list[Row]:
  """Fits P(score > 0.9) on the architecture (section 7.2 of the paper).

  A logistic regression over all scored latents: a term for each architecture,
  and, where SAEs differ in them, for log L0 and each place. Intervals are
  Wald's, 95%, and take latents for independent, as the paper's do: what
  training again would change is not in them.

  Args:
    saes: from `read`.
    measure: which score.
    reference: architecture.

  Returns:
    A row for each other architecture with ODDS: the reference's odds of a high
    score, divided by the other's. Where one has no high scores, or nothing but,
    the odds have no finite estimate, and the note says so.

  Raises:
    errors.InputError: the reference or the measure is not there.
  """
  names = sorted({sae.about['architecture'] for sae in saes})
  if reference not in names:
    raise errors.InputError(
      f'--reference={reference} is not there; give one of {", ".join(names)}.'
    )
  samples = [(sae, sae.of(measure)[0] > table.HIGH) for sae in saes]
  high = {
    name: np.concatenate(
      [y for sae, y in samples if sae.about['architecture'] == name]
    )
    for name in names
  }
  fitted = [name for name in names if 0 < high[name].sum() < len(high[name])]
  ratios = {}
  if reference in fitted and len(fitted) > 1:
    some = [(s, y) for s, y in samples if s.about['architecture'] in fitted]
    others = [name for name in fitted if name != reference]
    ratios = _fit(some, [reference, *others])
  return [
    {'measure': measure, 'reference': reference, 'architecture': name}
    | _counts(high[reference], high[name])
    | _ratio(ratios.get(name))
    for name in names
    if name != reference
  ]


def _counts(reference, other):
  return {
    'reference_above': int(reference.sum()),
    'above': int(other.sum()),
    'reference_latents': len(reference),
    'latents': len(other),
  }


def _ratio(found):
  note = '' if found else 'no finite odds: all or none above'
  values = found or (None, None, None)
  return dict(zip(('odds_ratio', 'low', 'high'), values, strict=True)) | {
    'note': note
  }


def _fit(samples, names):
  """Returns (ratio, low, high) of the first architecture to each other."""
  # Optional: nothing else needs it.
  from statsmodels.api import Logit

  saes = [sae for sae, _ in samples]
  columns_SP = _identified(
    np.array([[1.0, *_terms(sae, names)] for sae in saes]), _controls(saes)
  )
  X = np.repeat(columns_SP, [len(y) for _, y in samples], axis=0)
  y = np.concatenate([y for _, y in samples]).astype(float)
  fit = Logit(y, X).fit(disp=False)
  intervals = fit.conf_int(alpha=0.05)
  # The other's odds over the reference's are exp(term); we want the inverse.
  return {
    name: (
      float(np.exp(-fit.params[i])),
      float(np.exp(-intervals[i][1])),
      float(np.exp(-intervals[i][0])),
    )
    for i, name in enumerate(names[1:], start=1)
  }


def _terms(sae, names):
  return [float(sae.about['architecture'] == name) for name in names[1:]]


def _controls(saes):
  """Returns what else an SAE's latents share, a row for each SAE."""
  log_l0 = np.log([sae.about['l0'] for sae in saes])
  columns = [log_l0 - log_l0.mean()]
  places = list(_groups(saes, PLACE))
  of = [tuple(sae.about[name] for name in PLACE) for sae in saes]
  columns += [[float(one == place) for one in of] for place in places[1:]]
  return np.array(columns).T


def _identified(terms_SP, controls_SQ):
  """Returns terms and those controls that the SAEs can tell from them.

  With one SAE of each architecture none can: what their L0s differ in is then
  in the odds, and matching L0 is the choice of SAEs.
  """
  kept = terms_SP
  for column_S in controls_SQ.T:
    wider = np.column_stack([kept, column_S])
    if np.linalg.matrix_rank(wider) == wider.shape[1]:
      kept = wider
  return kept


def _averages(saes, measure):
  summaries = [sae.about['scores'][measure] for sae in saes]
  row = {
    'l0': float(np.mean([sae.about['l0'] for sae in saes])),
    'num_saes': len(saes),
    'scored': sum(one['scored'] for one in summaries),
    'latents': sum(one['latents'] for one in summaries),
  }
  scored = [one for one in summaries if one['scored']]
  if not scored:
    return row | dict.fromkeys(COLUMNS[COLUMNS.index('mean') :])
  for prefix in ('', 'weighted_'):
    means = [one[f'{prefix}mean'] for one in scored]
    low, high, kind = comparison.interval(means)
    if len(scored) == 1:
      low, high = (scored[0][f'{prefix}{end}'] for end in ('low', 'high'))
      kind = 'latents'
    row |= {
      f'{prefix}mean': float(np.mean(means)),
      f'{prefix}low': low,
      f'{prefix}high': high,
      'interval': kind,
    }
  above = float(np.mean([one['above_0.9'] for one in scored]))
  return row | {'above_0.9': above}


def _groups(saes, names):
  """Returns SAEs by what is said of them, in order."""
  rows = [{**sae.about, 'sae_': sae} for sae in saes]
  found = finished.groups(rows, names)
  return {key: [row['sae_'] for row in some] for key, some in found.items()}


def _by_l0(saes: Sequence[Scores], tolerance: float) -> list[list[Scores]]:
  """Returns lists of SAEs whose L0s are near each other, in order."""
  groups: list[list[Scores]] = []
  for sae in sorted(saes, key=lambda sae: sae.about['l0']):
    if groups and sae.about['l0'] <= _least(groups[-1]) * (1 + tolerance):
      groups[-1].append(sae)
    else:
      groups.append([sae])
  return groups


def _least(group: Sequence[Mapping]) -> float:
  return group[0].about['l0']


def by_place(rows: Sequence[Row]) -> dict[tuple, list[Row]]:
  """Returns the table's rows by PLACE."""
  return finished.groups(rows, PLACE)
