"""Histograms of how often latents fire, for each architecture and L0."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import figure as mpl_figure
from matplotlib import ticker
import numpy as np

from jumprelu_jax import finished
from jumprelu_jax.plot import ladder
from jumprelu_jax.plot import style

_BINS_PER_DECADE = 4
_SPARSITY = ('sparsity_coeff', 'k')


def table_of(rows: Sequence[finished.Row]) -> list[dict[str, object]]:
  """Returns what is drawn of the SAEs of one place; [] without latents.npz.

  Args:
    rows: from `finished.read`, of one layer and site.

  Returns:
    A row for each bin of each histogram: its range of frequencies, low ≤ f <
    high (1 is in the last bin), and the share of latents there, a mean over the
    seeds of one architecture and sparsity. Latents that never fire are the bin
    from 0 to 0.
  """
  groups = {}
  for row in rows:
    frequency_M = finished.frequency_M(row)
    if frequency_M is not None and row['l0'] > 0:
      key = tuple(row[name] for name in (*finished.KIND, *_SPARSITY))
      pair = row, frequency_M.astype('float64')
      groups.setdefault(key, []).append(pair)
  fired = [f_M[f_M > 0] for pairs in groups.values() for _, f_M in pairs]
  fired = [f_M for f_M in fired if f_M.size]
  if not fired:
    return []
  decades = int(np.floor(np.log10(min(f_M.min() for f_M in fired))))
  edges = np.logspace(decades, 0, 1 - decades * _BINS_PER_DECADE)
  return [
    row
    for key, pairs in sorted(groups.items(), key=lambda g: g[1][0][0]['l0'])
    for row in _histogram(key, pairs, edges)
  ]


def draw(table: Sequence[finished.Row], title: str) -> mpl_figure.Figure:
  """Draws the histograms: a panel for each architecture, shades for L0.

  Args:
    table: from `table_of`, not empty.
    title: what all the SAEs share.
  """
  with style.look():
    figure = ladder.Ladder(table, title, _notes(table))
    never = min(row['low'] for row in table if row['low'] > 0) / 10
    top = 1.05 * max(row['share'] for row in table)  # panels share it
    for ax, rows in figure.panels:
      for bins in finished.groups(rows, _SPARSITY).values():
        _draw_one(ax, bins, never, figure.shade(bins[0]['l0']))
      for cut in (0.01, 0.1):
        ax.axvline(cut, color='0.4', linewidth=0.8, linestyle=':', zorder=1)
      ax.set(xscale='log', xlim=(never / 2, 1), ylim=(0, top))
      ax.yaxis.set_major_formatter(ticker.PercentFormatter(1))
      _tick_decades(ax, never)
    label = 'Share of positions on which a latent fires'
    return figure.label(label, 'Share of latents')


def count(table: Sequence[finished.Row]) -> int:
  """Returns how many SAEs are in a table's histograms."""
  return sum(row['num_seeds'] for row in table if row['high'] == 0)


def _histogram(key, pairs, edges):
  """Yields the bins of one architecture and sparsity."""
  names = dict(zip((*finished.KIND, *_SPARSITY), key, strict=True))
  count = {
    'l0': float(np.mean([row['l0'] for row, _ in pairs])),
    'l0_settled': all(row['l0_settled'] for row, _ in pairs),
    'num_seeds': len(pairs),
  }
  first = pairs[0][0]
  place = {name: first[name] for name in finished.PLACE}
  never = float(np.mean([np.mean(f_M == 0) for _, f_M in pairs]))
  yield {**place, **names, **count, 'low': 0.0, 'high': 0.0, 'share': never}
  counts = [np.histogram(f_M, edges)[0] / f_M.size for _, f_M in pairs]
  for low, high, share in zip(edges, edges[1:], np.mean(counts, 0)):
    yield {
      **place, **names, **count,
      'low': float(low), 'high': float(high), 'share': float(share),
    }  # fmt: skip


def _draw_one(ax, bins, never, color):
  """Draws one histogram, and its latents that never fire as a mark."""
  dead = next(row for row in bins if row['high'] == 0)
  rest = sorted((r for r in bins if r['high'] > 0), key=lambda r: r['low'])
  edges = [row['low'] for row in rest] + [rest[-1]['high']]
  linestyle = '-' if dead['l0_settled'] else '--'
  shares = [row['share'] for row in rest]
  ax.stairs(shares, edges, color=color, linestyle=linestyle)
  ax.plot(
    never,
    dead['share'],
    'o',
    color=color,
    markerfacecolor=color if dead['l0_settled'] else 'none',
    clip_on=False,
  )


def _tick_decades(ax, never):
  """Labels powers of ten, and the place of those that never fire."""
  last = round(np.log10(never)) + 2  # nearer, its label would touch 'never'
  powers = range(0, last - 1, -1 if last > -3 else -2)
  ax.set_xticks(
    [never, *(10.0**power for power in powers)],
    ['never', *(_power(power) for power in powers)],
  )
  ax.xaxis.set_minor_locator(ticker.NullLocator())


def _power(power):
  return '1' if power == 0 else f'$10^{{{power}}}$'


def _notes(table):
  notes = ['dotted: 1% and 10%']
  most = max(row['num_seeds'] for row in table)
  if most > 1:
    notes.append(f'mean of up to {most} seeds')
  return ['; '.join(notes)]
