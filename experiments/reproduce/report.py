"""Writes the tables and figures of docs/results.md anew from its CSVs.

  python -m experiments.reproduce.report

The page's own words stay: what is between `<!-- table NAME -->` and
`<!-- end -->` is replaced. Figures go to docs/images/.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import pathlib
import re

import numpy as np

from experiments import launch
from experiments.reproduce import ablations
from jumprelu_jax import finished
from jumprelu_jax import progress
from jumprelu_jax import results
from jumprelu_jax.plot import catalogue
from jumprelu_jax.plot import style

DOCS = pathlib.Path(__file__).resolve().parents[2] / 'docs'
_SECTION = re.compile(r'(<!-- table (\w+) -->\n).*?(<!-- end -->)', re.DOTALL)
_FIGURES = ('delta_lm_loss', 'fvu')
_L0S = (5.0, 10.0, 20.0, 50.0)
_SIDE_L0 = 20.0
_SIDE = (
    'kl', 'dead_fraction', 'frac_over_1pct', 'frac_over_10pct',
    'relative_reconstruction_bias', 'importance_uniformity',
)  # fmt: skip

Row = finished.Row


def tuning_table(rows: Sequence[Row]) -> str:
  """The best of each architecture's search."""
  lines = []
  for kind, tried in finished.groups(rows, finished.KIND).items():
    rounds = finished.groups(tried, ('round',))
    best = [row for row in tried if row['best'] == 'True'][-1]
    firsts = [row['fvu'] for row in rounds[min(rounds)]]
    lines.append(
      (
        _code(kind), len(tried), f'{max(firsts):.4f}', f'{min(firsts):.4f}',
        f'{best["fvu"]:.4f}', f'{best["l0"]:.1f}', best['tried'],
      )
    )  # fmt: skip
  header = (
      'architecture, objective', 'tried', 'FVU at the worst learning rate',
      'at the best', 'in the end', 'L0', 'chosen',
  )  # fmt: skip
  return markdown(header, lines)


def matched_table(rows: Sequence[Row], sites: Iterable[str] = ()) -> str:
  """FVU and delta LM loss at matched L0, beside the reference."""
  wanted = [row for row in rows if not sites or row['site'] in sites]
  keys = (*finished.PLACE, *finished.KIND, 'l0')
  lines = []
  for key, here in finished.groups(wanted, keys).items():
    layer, site, *kind, l0 = key
    by_metric = {row['metric']: row for row in here}
    if l0 not in _L0S or 'fvu' not in by_metric:
      continue
    cells = [_difference(by_metric[name]) for name in ('fvu', 'delta_lm_loss')]
    seeds = by_metric['fvu']['num_seeds']
    lines.append(
      (f'{site} {layer}', _code(kind), f'{l0:g}', *cells, int(seeds))
    )
  header = (
      'site, layer', 'architecture, objective', 'L0', 'FVU: difference',
      'delta LM loss: difference', 'seeds',
  )  # fmt: skip
  return markdown(header, lines)


def side_table(rows: Sequence[Row]) -> str:
  """What else differs at one L0, the reference first."""
  rows = [row for row in rows if row['l0'] == _SIDE_L0]
  lines = []
  for (layer, site), here in finished.groups(rows, finished.PLACE).items():
    kinds = finished.groups(here, finished.KIND)
    reference = tuple(here[0]['reference'].split('/'))
    any_kind = next(iter(kinds.values()))  # all are held against the same
    for name, of_one, column in (
      (reference, any_kind, 'reference_value'),
      *((kind, of_one, 'value') for kind, of_one in kinds.items()),
    ):
      values = {row['metric']: row[column] for row in of_one}
      cells = [_metric(metric, values.get(metric)) for metric in _SIDE]
      lines.append((f'{site} {layer}', _code(name), *cells))
  header = (
      'site, layer', 'architecture, objective', 'KL', 'dead', '>1%', '>10%',
      'γ', 'r_L0',
  )  # fmt: skip
  return markdown(header, lines)


def yardstick_table(rows: Sequence[Row]) -> str:
  """What each SAE came to, in a setting that others' figures are known in."""
  lines = [
    (
      row.get('variant') or _code((row['architecture'], row['objective'])),
      f'{row["l0"]:.1f}', f'{row["fvu"]:.4f}', f'{row["delta_lm_loss"]:.4f}',
      f'{row["dead_fraction"]:.1%}', row['l0_settled'],
    )
    for row in rows
  ]  # fmt: skip
  header = ('SAE', 'L0', 'FVU', 'delta LM loss', 'dead', 'L0 settled')
  return markdown(header, lines)


def ablation_table(rows: Sequence[Row]) -> str:
  """Each variant beside the recipe of the same seed."""
  by_variant = {}
  for row in rows:
    by_variant.setdefault(row['variant'], {})[row['seed']] = row
  lines = []
  for variant, by_seed in by_variant.items():
    base = ablations.base_of(variant)
    recipe = by_variant[base]
    cells = [
      _mean_and_range(
        [by_seed[seed][name] - recipe[seed][name] for seed in by_seed]
      )
      for name in ('fvu', 'delta_lm_loss')
    ]
    if variant == base:
      cells = [
        f'{np.mean([row[name] for row in recipe.values()]):.4f} itself'
        for name in ('fvu', 'delta_lm_loss')
      ]
    l0 = np.mean([row['l0'] for row in by_seed.values()])
    dead = np.mean([row['dead_fraction'] for row in by_seed.values()])
    settled = all(row['l0_settled'] for row in by_seed.values())
    shown = '' if settled else ' (not settled)'
    lines.append((variant, f'{l0:.1f}{shown}', *cells, f'{dead:.1%}'))
  header = ('variant', 'L0', 'FVU', 'delta LM loss', 'dead')
  return markdown(header, lines)


#: Tables by their names in docs/results.md: (CSV, function of its rows).
TABLES: dict[str, tuple[str, Callable[[Sequence[Row]], str]]] = {
  'embedded_tuning': ('embedded/tuning.csv', tuning_table),
  'embedded_residual': (
    'embedded/comparison.csv',
    lambda rows: matched_table(rows, ('resid_post',)),
  ),
  'embedded_elsewhere': (
    'embedded/comparison.csv',
    lambda rows: matched_table(rows, ('attn_z', 'mlp_out')),
  ),
  'embedded_side': ('embedded/comparison.csv', side_table),
  'embedded_constant': (
    'embedded/constant_lambda/comparison.csv',
    lambda rows: matched_table(rows, ('resid_post',)),
  ),
  'embedded_ablations': ('embedded/ablations.csv', ablation_table),
  'smollm2_tuning': ('smollm2/tuning.csv', tuning_table),
  'smollm2_yardstick': ('smollm2/yardstick.csv', yardstick_table),
  'smollm2_saelens': ('smollm2/yardstick_saelens.csv', yardstick_table),
  'smollm2_novels_sotu': (
    'smollm2/yardstick_novels_sotu.csv',
    yardstick_table,
  ),
  'smollm2_matched': ('smollm2/comparison.csv', matched_table),
  'smollm2_side': ('smollm2/comparison.csv', side_table),
}


def render(page: str, folder: pathlib.Path) -> str:
  """Returns the page with its tables made anew from a folder of CSVs.

  Raises:
    errors.InputError: a CSV is missing or damaged.
  """

  def section(match):
    path, table = TABLES[match[2]]
    return f'{match[1]}{table(results.read(folder / path, ()))}{match[3]}'

  return _SECTION.sub(section, page)


def draw(folder: pathlib.Path, preset: str) -> None:
  """Draws the fronts of a preset into docs/images/."""
  rows = [
    row | {'folder': None} for row in results.read(folder / preset / 'grid.csv')
  ]
  for entry in catalogue.of_runs(rows):
    if entry.name in _FIGURES:
      figure = entry.draw(entry.table)
      style.save(figure, DOCS / 'images', f'{preset}_{entry.name}')


def markdown(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
  """Returns a table in Markdown."""
  rows = [header, ['---'] * len(header), *lines]
  return ''.join(f'| {" | ".join(map(str, row))} |\n' for row in rows)


def _code(kind):
  return ', '.join(f'`{name}`' for name in kind)


def _difference(row):
  """'0.0812: +0.0021 (+0.0018 to +0.0025)'."""
  shown = f'{row["value"]:.4f}: {row["difference"]:+.4f}'
  if row['low'] is None:
    return shown
  return f'{shown} ({row["low"]:+.4f} to {row["high"]:+.4f})'


def _mean_and_range(values):
  shown = f'{np.mean(values):+.4f}'
  if len(values) == 1:
    return shown
  return f'{shown} ({min(values):+.4f} to {max(values):+.4f})'


def _metric(name, value):
  if value is None:
    return ''
  if name in ('dead_fraction', 'frac_over_1pct', 'frac_over_10pct'):
    return f'{value:.1%}'
  return f'{value:.3f}'


def main():
  path = DOCS / 'results.md'
  path.write_text(render(path.read_text(), DOCS / 'results'))
  for preset in ('embedded', 'smollm2'):
    if (DOCS / 'results' / preset / 'grid.csv').is_file():
      draw(DOCS / 'results', preset)
  progress.say(f'{path}, {DOCS / "images"}')


if __name__ == '__main__':
  launch.run(main)
