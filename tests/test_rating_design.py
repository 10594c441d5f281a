"""The draw of a rating study: balanced and blind; and what it shows."""

import collections
import dataclasses
import itertools
import math

from helpers import rated_records
import numpy as np
import pytest
from scipy import stats

from jumprelu_jax import errors
from jumprelu_jax.ratings import design
from jumprelu_jax.ratings import windows
from jumprelu_jax.records import schema

RATERS = ('ann', 'bob', 'cy', 'di', 'eve')
SITES, LAYERS = ('resid_post', 'mlp_out', 'attn_z'), (9, 20, 31)
ARCHITECTURES, L0S = ('gated', 'jumprelu', 'topk'), (20.0, 75.0, 150.0)


def papers_saes():
  """The paper's 81 SAEs."""
  cells = itertools.product(SITES, LAYERS, ARCHITECTURES, L0S)
  return [
    design.SAE(f'records_{i}', site, layer, architecture, l0, l0, 100, 50)
    for i, (site, layer, architecture, l0) in enumerate(cells)
  ]


ALIVE = [np.arange(i % 2, 100, 2) for i in range(81)]  # half of the latents


@pytest.mark.parametrize('seed', range(12))
def test_the_papers_sample_is_balanced(seed):
  saes = papers_saes()
  drawn = design.draw(saes, ALIVE, RATERS, seed=seed)
  items = {item.name: item for item in drawn.items}
  seen = collections.Counter()
  for names in drawn.orders.values():
    assert len(set(names)) == 81
    assert sorted(items[name].sae for name in names) == list(range(81))
    seen.update(names)
  # A fifth of 81 items is common to all five, the others are of one rater each.
  assert collections.Counter(seen.values()) == {5: 16, 1: 5 * 65}
  common = [saes[items[name].sae] for name, count in seen.items() if count == 5]
  for factor, tolerance in zip(design.FACTORS, (1, 2, 2, 2), strict=True):
    of_all = dict.fromkeys((getattr(sae, factor) for sae in saes), 0)
    counts = of_all | collections.Counter(getattr(s, factor) for s in common)
    assert max(counts.values()) - min(counts.values()) <= tolerance, factor
  for item in items.values():
    assert item.latent in ALIVE[item.sae]
  latents = [(item.sae, item.latent) for item in items.values()]
  assert len(set(latents)) == len(latents)


def test_the_order_of_items_says_nothing():
  saes = papers_saes()
  places, names = collections.defaultdict(list), collections.defaultdict(list)
  for seed in range(40):
    drawn = design.draw(saes, ALIVE, RATERS[:2], seed=seed)
    items = {item.name: item for item in drawn.items}
    for i, item in enumerate(drawn.items):
      names[saes[item.sae].architecture].append(i / len(items))
    for order in drawn.orders.values():
      for i, name in enumerate(order):
        places[saes[items[name].sae].architecture].append(i)
    assert drawn.orders['ann'] != drawn.orders['bob']
  # 80 orders by 27: the means of uniform places have a deviation of half a
  # place, and those of names in their order of 0.0065.
  for architecture in ARCHITECTURES:
    assert abs(np.mean(places[architecture]) - 40) < 2
    assert abs(np.mean(names[architecture]) - 0.5) < 0.03


def test_every_living_latent_is_drawn_alike():
  sae = dataclasses.replace(papers_saes()[0], num_latents=20)
  alive = [np.array([1, 4, 9, 16])]
  drawn = collections.Counter(
    design.draw([sae], alive, ['ann'], seed=seed).items[0].latent
    for seed in range(400)
  )
  assert set(drawn) == {1, 4, 9, 16}
  assert stats.chisquare(list(drawn.values())).pvalue > 1e-3


@pytest.mark.parametrize(
  ('raters', 'per_sae', 'overlap', 'common', 'latents'),
  [(1, 1, 0.5, 0, 81), (2, 1, 1, 81, 81), (3, 2, 0.25, 40, 40 + 3 * 122)],
)
def test_overlap_and_latents_of_each_sae(
  raters, per_sae, overlap, common, latents
):
  drawn = design.draw(
    papers_saes(), ALIVE, RATERS[:raters], per_sae=per_sae, overlap=overlap
  )
  assert len(drawn.items) == latents
  seen = collections.Counter(itertools.chain(*drawn.orders.values()))
  assert sum(n == raters for n in seen.values()) == (common or latents)
  assert {len(names) for names in drawn.orders.values()} == {81 * per_sae}


def test_a_seed_gives_one_draw():
  draws = [
    design.draw(papers_saes(), ALIVE, RATERS, seed=seed) for seed in (3, 3, 4)
  ]
  assert draws[0] == draws[1]
  assert draws[0] != draws[2]


def test_too_few_living_latents_are_refused():
  alive = [*ALIVE[:80], np.arange(4)]
  with pytest.raises(errors.InputError, match=r'records_80: 4 .* fewer --rate'):
    design.draw(papers_saes(), alive, RATERS, overlap=0)


def test_levels_of_sparsity():
  found = design.levels([21.0, 74, 18, 150, 80, 140, 20])
  assert found == [19.6, 76.9, 19.6, 145, 76.9, 145, 19.6]
  assert design.levels([1.0, 2, 5, 10]) == [1, 2, 5, 10]
  # sqrt(20 · 75) = 38.7 is between the two.
  assert design.levels([38.0, 39, 500], (20.0, 75.0)) == [20, 75, 75]


def test_what_is_missing_of_the_design():
  saes = papers_saes()
  assert design.missing(saes) == []
  assert design.missing(saes[1:]) == [('gated', 'resid_post', 9, 20)]


def one_record(folder, **values):
  records = schema.read(rated_records.write(folder, [5, 8], **values))
  return records, windows.extent(records)


def test_windows_are_of_every_quantile(tmp_path):
  records, extent = one_record(tmp_path / 'a', scale=700.0)
  assert extent == windows.Extent(per_stratum=6, before=7, after=5)
  shown = windows.Extent(per_stratum=3, before=4, after=2)
  rng = np.random.default_rng(0)
  found = windows.of_latents(records, [8], shown, rng)
  assert list(found) == [8]
  assert [s['stratum'] for s in found[8]] == [0, 4, 3, 2, 1]
  for stratum in found[8]:
    assert len(stratum['windows']) == 3
    for window in stratum['windows']:
      assert len(window['tokens']) == 7
      assert window['at'] == 4
  own = [
    [window['tokens'][4][1] for window in stratum['windows']]
    for stratum in found[8]
  ]
  assert own[0] == [100, 99, 98]  # the largest
  for percents, low in zip(own[1:], (75, 50, 25, 0), strict=True):
    assert all(low < percent <= low + 25 for percent in percents)
    assert percents == sorted(percents, reverse=True)


def test_windows_are_those_of_the_records(tmp_path):
  records, extent = one_record(tmp_path / 'a', scale=3.0)
  rng = np.random.default_rng(0)
  (top, *_) = windows.of_latents(records, [5], extent, rng)[5]
  want = [
    {
      'tokens': [
        [rated_records.TEXTS[token], math.ceil(round(100 * a / 3, 3))]
        for token, a in zip(row['tokens'], row['activations'], strict=True)
      ],
      'at': 7,
    }
    for row in records.examples([5]).to_pylist()[:6]
  ]
  assert top['windows'] == want
  assert any(0 < p < 100 for _, p in want[0]['tokens'])


def test_a_quantiles_sample_has_no_favourites(tmp_path):
  records, extent = one_record(tmp_path / 'a', per_stratum=12)
  one = dataclasses.replace(extent, per_stratum=1)
  percents = set()
  for seed in range(40):
    rng = np.random.default_rng(seed)
    strata = windows.of_latents(records, [5], one, rng)[5]
    percents.add(strata[1]['windows'][0]['tokens'][7][1])
  assert len(percents) > 6


def test_what_is_among_the_largest_is_not_shown_again():
  row = {
    'latent': 1, 'sequence': 0, 'position': 3, 'start': 3, 'tokens': [0],
    'activations': [2.0], 'activation': 2.0,
  }  # fmt: skip
  rows = [row | {'stratum': 0}, row | {'stratum': 2}]
  rows.append(row | {'stratum': 2, 'position': 4, 'activation': 1.0})
  chosen = dict(windows._choose(rows, 5, np.random.default_rng(0)))
  assert {k: [r['position'] for r in v] for k, v in chosen.items()} == {
    0: [3],
    2: [4],
  }


def test_shares_are_whole_percents():
  assert [windows._percent(a, 200.0) for a in (0, 1e-6, 1, 126, 200)] == [
    0,
    1,
    1,
    63,
    100,
  ]
  third = float(np.float32(0.63) * np.float32(7.3))
  assert windows._percent(third, float(np.float32(7.3))) == 63
