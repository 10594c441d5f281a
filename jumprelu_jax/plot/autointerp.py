"""Mean scores of latents against L0: a panel for each measure."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence

from matplotlib import figure as mpl_figure

from jumprelu_jax import finished
from jumprelu_jax.plot import style

_LABELS = {
  'token_lookup': 'Token lookup (correlation)',
  'bigram_lookup': 'Bigram lookup (correlation)',
  'simulation': 'Simulation (correlation)',
  'detection': 'Detection (balanced accuracy)',
  'fuzzing': 'Fuzzing (balanced accuracy)',
}
_CHANCE = {'detection': 0.5, 'fuzzing': 0.5}
_MAX_COLUMNS = 3


def draw(
  table: Sequence[Mapping[str, object]], title: str
) -> mpl_figure.Figure:
  """Draws averages with their intervals; hollow ones weighted by frequency.

  Args:
    table: from `autointerp.compare.table_of`, of one place; rows without a mean
      are left out.
    title: what all the SAEs share.
  """
  table = [row for row in table if row['mean'] is not None]
  lines = style.architectures(finished.groups(table, ('architecture',)))
  measures = list(dict.fromkeys(row['measure'] for row in table))
  columns = min(len(measures), _MAX_COLUMNS)
  rows = -(-len(measures) // columns)
  width = {1: style.COLUMN, 2: 5.2}.get(columns, style.PAGE)
  with style.look():
    figure = style.figure(width, 0.4 + 2.1 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(measures) :]:
      ax.set_axis_off()
    for ax, measure in zip(axes, measures, strict=False):
      here = [row for row in table if row['measure'] == measure]
      for kind, ours in finished.groups(here, ('architecture',)).items():
        _draw_kind(ax, ours, lines[kind])
      if measure in _CHANCE:
        ax.axhline(_CHANCE[measure], color='0.4', linewidth=0.8, zorder=1)
      ax.set(xlabel='L0 (active latents per token)')
      ax.set_ylabel(_LABELS.get(measure, measure))
      style.log_axis(ax.xaxis, [row['l0'] for row in table])
    style.title(figure, title)
    notes = ['filled: plain mean; hollow: weighted by frequency']
    notes += _about_bars(table)
    style.legend(figure, {kind[0]: line for kind, line in lines.items()}, notes)
  return figure


def _draw_kind(ax, rows, line):
  """One architecture: its plain means joined, its weighted ones not."""
  rows = sorted(rows, key=lambda row: row['l0'])
  l0s = [row['l0'] for row in rows]
  for prefix, face, linestyle in (
    ('', line.color, line.linestyle),
    ('weighted_', 'none', 'none'),
  ):
    means = [row[f'{prefix}mean'] for row in rows]
    ax.plot(
      l0s,
      means,
      line.marker,
      color=line.color,
      markerfacecolor=face,
      linestyle=linestyle,
    )
    for l0, row in zip(l0s, rows, strict=True):
      ends = [row[f'{prefix}{end}'] for end in ('low', 'high')]
      if None not in ends:
        ax.plot([l0, l0], ends, color=line.color, linewidth=0.9)


def _about_bars(table):
  kinds = {row['interval'] for row in table} - {'', None}
  words = {
    'latents': '95% over the latents of one SAE',
    'range': 'the range of 2 or 3 SAEs',
    'bootstrap': '95% over SAEs',
  }
  said = [
    words[kind] for kind in ('latents', 'range', 'bootstrap') if kind in kinds
  ]
  return [f'bars: {"; ".join(said)}'] if said else []
