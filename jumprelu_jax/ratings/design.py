"""Which latents are rated, and by whom: stratified, balanced, drawn by a seed.

As in Rajamanoharan et al. 2024 (arXiv:2407.14435, the manual study): SAEs of
every site, layer, architecture and sparsity, and each rater rates as many
latents of each SAE as of any other. A share of the items is common to all
raters, so that their agreement can be measured; the others are each rater's
own, so that many latents are seen.
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

#: What SAEs differ in, the one that is asked about first.
FACTORS = ('architecture', 'site', 'layer', 'sparsity')

# L0s, sorted, that differ from the next by less are of one level: two apart by
# the steps that people choose (1, 2, 5, 10 or 20, 75, 150) are not.
_SAME_LEVEL = 1.4
# Names of items have no digits and no vowels: none is a number or a word that
# could be taken for one of an SAE.
_LETTERS = 'bcdfghjkmnpqrstvwxz'
_NAME_LENGTH = 12


@dataclasses.dataclass(frozen=True)
class SAE:
  """An SAE of a study.

  Attributes:
    records: the folder of its records.
    site: where it reads, with `layer`.
    layer: see above.
    architecture: its own.
    l0: latents that fire at a position, on average.
    sparsity: the L0 of the level that it belongs to.
    num_latents: M.
    num_alive: of them that fire at all; the others are never drawn.
  """

  records: str
  site: str
  layer: int
  architecture: str
  l0: float
  sparsity: float
  num_latents: int
  num_alive: int


@dataclasses.dataclass(frozen=True)
class Item:
  """A latent that is rated.

  Attributes:
    name: what raters' pages call it; says nothing of the SAE.
    sae: index of its SAE.
    latent: index in that SAE.
  """

  name: str
  sae: int
  latent: int


@dataclasses.dataclass(frozen=True)
class Draw:
  """Who rates what.

  Attributes:
    items: all, sorted by name.
    orders: names of the items of each rater, in the rater's own order.
  """

  items: tuple[Item, ...]
  orders: Mapping[str, tuple[str, ...]]


def levels(l0s: Sequence[float], given: Sequence[float] = ()) -> list[float]:
  """Returns the L0 of the level of sparsity that each SAE belongs to.

  Args:
    l0s: of the SAEs, positive.
    given: the levels; each SAE belongs to the nearest on a log scale. Without,
      L0s of which each is less than 1.4 times the one before are a level, named
      by their geometric mean to three digits.
  """
  if given:
    return [min(given, key=lambda g: abs(math.log(g / l0))) for l0 in l0s]
  clusters = []
  for l0 in sorted(l0s):
    if not clusters or l0 >= _SAME_LEVEL * clusters[-1][-1]:
      clusters.append([])
    clusters[-1].append(l0)
  names = {}
  for cluster in clusters:
    mean = math.exp(sum(map(math.log, cluster)) / len(cluster))
    names |= dict.fromkeys(cluster, float(f'{mean:.3g}'))
  return [names[l0] for l0 in l0s]


def missing(saes: Sequence[SAE]) -> list[tuple[object, ...]]:
  """Returns combinations of the factors' values that no SAE has."""
  values = [sorted({getattr(sae, name) for sae in saes}) for name in FACTORS]
  there = {tuple(getattr(sae, name) for name in FACTORS) for sae in saes}
  return [cell for cell in itertools.product(*values) if cell not in there]


def draw(
  saes: Sequence[SAE],
  alive: Sequence[np.ndarray],
  raters: Sequence[str],
  *,
  per_sae: int = 1,
  overlap: float = 0.2,
  seed: int = 0,
) -> Draw:
  """Draws the items of a study.

  Args:
    saes: all of it.
    alive: for each SAE, the latents that may be drawn.
    raters: names, distinct.
    per_sae: latents of each SAE that a rater rates.
    overlap: share of a rater's items that all raters have, rounded to a whole
      number of items; spread over the factors as evenly as can be, and over
      architectures before all.
    seed: of everything; the same seed gives the same draw.

  Raises:
    errors.InputError: an SAE has fewer latents than are drawn from it.
  """
  rng = np.random.default_rng(seed)
  total = round(overlap * per_sae * len(saes)) if len(raters) > 1 else 0
  common_S = _spread(saes, per_sae, total, rng)
  rated = {rater: [] for rater in raters}
  for i, (sae, alive_A) in enumerate(zip(saes, alive, strict=True)):
    own = per_sae - common_S[i]
    needed = int(common_S[i] + own * len(raters))
    _check_enough(sae, len(alive_A), needed)
    drawn = [(i, int(m)) for m in rng.choice(alive_A, needed, replace=False)]
    for rater in raters:
      rated[rater] += drawn[: common_S[i]]
    for k, rater in enumerate(raters):
      first = common_S[i] + k * own
      rated[rater] += drawn[first : first + own]
  latents = sorted(set(itertools.chain.from_iterable(rated.values())))
  names = dict(zip(latents, _names(len(latents), rng), strict=True))
  items = [Item(name, *latent) for latent, name in names.items()]
  orders = {
    rater: tuple(names[latents[i]] for i in rng.permutation(len(latents)))
    for rater, latents in rated.items()
  }
  return Draw(tuple(sorted(items, key=lambda item: item.name)), orders)


def _spread(saes, per_sae, total, rng):
  """Returns how many of its items each SAE has in common, [S].

  One at a time, wherever there are fewest so far: of its architecture, then of
  its site, layer and sparsity together.
  """
  counts = collections.Counter()
  common_S = np.zeros(len(saes), int)

  def crowding(i):
    first, *others = _values(saes[i])
    return counts[first], sum(counts[o] for o in others), common_S[i]

  for _ in range(total):
    free = rng.permutation(np.flatnonzero(common_S < per_sae))
    chosen = min(free, key=crowding)
    common_S[chosen] += 1
    counts.update(_values(saes[chosen]))
  return common_S


def _values(sae: SAE) -> Iterable[tuple[str, object]]:
  return [(name, getattr(sae, name)) for name in FACTORS]


def _names(count, rng):
  """Returns distinct names of items."""
  letters = np.array(list(_LETTERS))
  found = {}  # in order, unlike a set of strings
  while len(found) < count:
    found[''.join(rng.choice(letters, _NAME_LENGTH))] = None
  return list(found)


def _check_enough(sae, num_alive, needed):
  if num_alive < needed:
    raise errors.InputError(
      f'{sae.records}: {num_alive} of its {sae.num_latents} latents fire, but '
      f'{needed} are to be drawn; leave it out of --records, or give fewer '
      '--raters, a smaller --per_sae or a larger --overlap.'
    )
