"""What raters see of a latent: windows of text, shaded by its activation.

Nothing of the SAE is in it. Activations are shares of the latent's largest, in
whole percent, so that neither their scale nor their digits can be recognised;
and all SAEs of a study show as many windows of as many tokens, as the one whose
records hold fewest.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import itertools
import math

import numpy as np

from jumprelu_jax import errors
from jumprelu_jax.records import schema

# Latents that fire most have as many examples, as long, as records ever hold.
_FULL = 32


@dataclasses.dataclass(frozen=True)
class Extent:
  """How much is shown of a latent.

  Attributes:
    per_stratum: windows of a stratum, at most.
    before: tokens of a window before its own, at most.
    after: likewise.
  """

  per_stratum: int
  before: int
  after: int


def extent(records: schema.Records) -> Extent:
  """Returns how much records hold of a latent that fires often."""
  table = records.latents(['latent', 'count'])
  count_M = table['count'].to_numpy()
  fullest = table['latent'].to_numpy()[np.argsort(-count_M, kind='stable')]
  rows = records.examples(fullest[:_FULL]).to_pylist()
  if not rows:
    raise errors.InputError(
      f'{records.folder} holds no examples; make the records again with '
      'experiments.records.'
    )
  strata = collections.Counter((row['latent'], row['stratum']) for row in rows)
  before = [row['position'] - row['start'] for row in rows]
  sizes = [len(row['tokens']) for row in rows]
  return Extent(
    max(strata.values()),
    max(before),
    max(size - 1 - b for size, b in zip(sizes, before, strict=True)),
  )


def smallest(extents: Iterable[Extent], per_stratum: int) -> Extent:
  """Returns what every SAE can show, with per_stratum windows at most."""
  rows = [dataclasses.astuple(one) for one in extents]
  least = Extent(*map(min, zip(*rows, strict=True)))
  return dataclasses.replace(
    least, per_stratum=min(least.per_stratum, per_stratum)
  )


def of_latents(
  records: schema.Records,
  latents: Sequence[int],
  shown: Extent,
  rng: np.random.Generator,
) -> dict[int, list[dict[str, object]]]:
  """Returns what is shown of some latents, as JSON can hold it.

  Args:
    records: of their SAE.
    latents: indices.
    shown: how much.
    rng: chooses windows where a quantile has more than are shown.

  Returns:
    For each latent its strata, the largest activations first and then quantiles
    from strong to weak: {'stratum': as in `schema`, 'windows': [{'tokens':
    [[text, percent], …], 'at': index of the window's own token}, …]}.

  Raises:
    errors.InputError: records have no example of a latent that fires.
  """
  table = records.latents(['latent', 'max']).to_pydict()
  largest = dict(zip(table['latent'], table['max'], strict=True))
  rows = sorted(
    records.examples(latents).to_pylist(), key=lambda row: row['latent']
  )
  found = {}
  for latent, own in itertools.groupby(rows, lambda row: row['latent']):
    found[latent] = [
      {
        'stratum': stratum,
        'windows': [
          _window(row, records.pieces, largest[latent], shown) for row in chosen
        ],
      }
      for stratum, chosen in _choose(list(own), shown.per_stratum, rng)
    ]
  if lost := set(latents) - found.keys():
    raise errors.InputError(
      f'{records.folder} holds no example of latent {min(lost)}, which fires; '
      'make the records again with experiments.records.'
    )
  return found


def _choose(rows, per_stratum, rng):
  """Yields (stratum, rows): the largest ones, and a sample of each quantile.

  What is among the largest is not shown again.
  """
  rows.sort(key=lambda row: (row['stratum'], -row['activation']))
  strata = {
    stratum: list(group)
    for stratum, group in itertools.groupby(rows, lambda row: row['stratum'])
  }
  top = strata.pop(schema.TOP, [])[:per_stratum]
  if top:
    yield schema.TOP, top
  seen = {_place(row) for row in top}
  for stratum, group in sorted(strata.items(), reverse=True):
    fresh = [row for row in group if _place(row) not in seen]
    if fresh:
      size = min(per_stratum, len(fresh))
      chosen = np.sort(rng.choice(len(fresh), size, replace=False))
      yield stratum, [fresh[i] for i in chosen]


def _place(row: Mapping[str, object]) -> tuple[object, object]:
  return row['sequence'], row['position']


def _window(row, pieces, largest, shown):
  """Returns a row of examples.parquet as raters see it.

  The tokens of one character are shown as one, as active as the most active.
  """
  at = row['position'] - row['start']
  first = max(0, at - shown.before)
  kept = slice(first, at + 1 + shown.after)
  tokens = row['tokens'][kept]
  texts, groups = pieces(tokens), pieces.groups(tokens)
  percents = [_percent(a, largest) for a in row['activations'][kept]]
  return {
    'tokens': [[''.join(texts[g]), max(percents[g])] for g in groups],
    'at': sum(group.stop <= at - first for group in groups),
  }


def _percent(activation, largest):
  """Returns a share in whole percent, 1 at least where the latent fires."""
  if not activation > 0:
    return 0
  # Less a little: a float32 that is a hair above 63% is 63%.
  return min(100, max(1, math.ceil(100 * activation / largest - 1e-3)))
