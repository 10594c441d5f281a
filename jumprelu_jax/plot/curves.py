"""Training curves, for each architecture and L0."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import figure as mpl_figure
from matplotlib import ticker

from jumprelu_jax import finished
from jumprelu_jax import writer
from jumprelu_jax.plot import ladder
from jumprelu_jax.plot import style

#: What is drawn against steps, by its name in metrics.jsonl.
METRICS = {
  'l0': 'L0 of training batches',
  'squared_error': 'Squared error (normalised)',
}
_ONE = ('sparsity_coeff', 'k', 'seed')  # of a kind
_NAMES = (*finished.PLACE, *finished.KIND, *_ONE, 'l0', 'l0_settled')


def table_of(
  rows: Sequence[finished.Row], metric: str
) -> list[dict[str, object]]:
  """Returns the curves of the SAEs of one place; [] without metrics.jsonl.

  Args:
    rows: from `finished.read`, of one layer and site.
    metric: a key of METRICS.

  Returns:
    A row for each record: the SAE, its L0 on held-out text, the step and the
    metric, above 0, its mean over the steps since the record before. Squared
    errors are those of activations whose mean squared norm is 1.
  """
  table = []
  for row in rows:
    curve = writer.read_curve(row['folder']) if row['folder'] else []
    names = {name: row[name] for name in _NAMES}
    for record in curve if row['l0'] > 0 else []:
      value = finished.number(record, metric)
      if value is not None and value > 0:
        drawn = {'step': record['step'], 'metric': metric, 'value': value}
        table.append(names | drawn)
  return table


def draw(table: Sequence[finished.Row], title: str) -> mpl_figure.Figure:
  """Draws the curves: a panel for each architecture, shades for L0.

  Args:
    table: from `table_of`, not empty.
    title: what all the SAEs share.
  """
  with style.look():
    figure = ladder.Ladder(table, title)
    for ax, rows in figure.panels:
      for curve in finished.groups(rows, _ONE).values():
        ax.plot(
          [row['step'] for row in curve],
          [row['value'] for row in curve],
          color=figure.shade(curve[0]['l0']),
          linestyle='-' if curve[0]['l0_settled'] else '--',
        )
      ax.set_xlim(0, 1.04 * max(row['step'] for row in table))
      ax.xaxis.set_major_locator(ticker.MaxNLocator(4, steps=(1, 2, 5, 10)))
      ax.xaxis.set_major_formatter(ticker.StrMethodFormatter('{x:,.0f}'))
    style.log_axis(ax.yaxis, [row['value'] for row in table])
    return figure.label('Training step', METRICS[table[0]['metric']])


def count(table: Sequence[finished.Row]) -> int:
  """Returns how many SAEs a table has curves of."""
  return len(finished.groups(table, (*finished.KIND, *_ONE)))
