"""A metric against L0: lines for architectures, panels for layers and sites."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import os

from matplotlib import figure as mpl_figure
from matplotlib import ticker
import numpy as np

from jumprelu_jax import comparison
from jumprelu_jax import finished
from jumprelu_jax.plot import style

Row = finished.Row
Lines = Mapping[tuple[str, ...], style.Line]


@dataclasses.dataclass(frozen=True)
class Metric:
  """How a metric is drawn.

  Attributes:
    label: of its axis, with units.
    floor: value that the axis begins at, if no run is below; None for any.
    ideal: value that gets a line; None for none.
    is_share: drawn as a percentage.
  """

  label: str
  floor: float | None = 0.0
  ideal: float | None = None
  is_share: bool = False


#: Metrics that are drawn against L0, by their columns.
METRICS = {
  'delta_lm_loss': Metric('Delta LM loss (nats)'),
  'fvu': Metric('Fraction of variance unexplained'),
  'frac_over_1pct': Metric('Latents firing on >1%', is_share=True),
  'frac_over_10pct': Metric('Latents firing on >10%', is_share=True),
  'importance_uniformity': Metric('Uniformity of importance $r_{L0}$'),
  'relative_reconstruction_bias': Metric(
    r'Relative reconstruction bias $\gamma$', floor=None, ideal=1.0
  ),
}
_L0 = 'L0 (active latents per token)'


def table_of(rows: Sequence[Row], metric: str) -> list[dict[str, object]]:
  """Returns what is drawn of a metric; [] where no run has it.

  Args:
    rows: from `finished.read`.
    metric: a key of METRICS.

  Returns:
    Rows of two sorts. 'run': an SAE's L0 and metric. 'line': at each L0 of a
    settled run, the mean over seeds of the metric along each seed's front
    (`comparison.Front`), with the least and the greatest; within the range that
    all seeds with two settled runs have measured.
  """
  table = []
  groups = finished.groups(rows, (*finished.PLACE, *finished.KIND))
  for key, of_one in groups.items():
    names = dict(zip((*finished.PLACE, *finished.KIND), key, strict=True))
    drawn = [*_runs(of_one, metric), *_line(of_one, metric)]
    table += [names | {'metric': metric} | row for row in drawn]
  return table


def draw(table: Sequence[Row], lines: Lines, title: str) -> mpl_figure.Figure:
  """Draws one metric: layers below each other, sites side by side.

  Args:
    table: from `table_of`, not empty.
    lines: looks by (architecture, objective).
    title: what all the runs share.
  """
  panels = finished.groups(table, finished.PLACE)
  layers = sorted({layer for layer, _ in panels})
  sites = sorted({site for _, site in panels})
  metric = METRICS[table[0]['metric']]
  with style.look():
    width = {1: style.COLUMN, 2: 5.0}.get(len(sites), style.PAGE)
    figure = style.figure(width, 0.5 + 1.75 * len(layers))
    grid = figure.subplots(len(layers), len(sites), squeeze=False)
    for site, axes in zip(sites, grid.T, strict=True):
      last = max(layer for layer, other in panels if other == site)
      for layer, ax in zip(layers, axes, strict=True):
        if (layer, site) not in panels:
          ax.set_axis_off()
          continue
        _draw_panel(ax, panels[layer, site], lines)
        ax.set_title(f'{site}, layer {layer}')
        style.log_axis(ax.xaxis, [row['l0'] for row in table])
        ax.tick_params(labelbottom=layer == last)
        ax.set_xlabel(_L0 if layer == last else None)
    style.title(figure, title)
    below = _add_legend(figure, table, lines) / figure.get_figheight()
    figure.supylabel(metric.label, y=(1 + below) / 2)  # in the middle of panels
  return figure


def pareto(rows: Sequence[Row], folder: str | os.PathLike) -> None:
  """Draws fidelity against sparsity: `pareto.png` and `pareto.pdf`.

  Args:
    rows: rows of results.csv with numbers as numbers, of one place; runs whose
      L0 has not settled are drawn hollow.
    folder: where the pictures are written.
  """
  lines = style.architectures(finished.groups(rows, finished.KIND))
  tables = {name: table_of(rows, name) for name in ('delta_lm_loss', 'fvu')}
  with style.look():
    figure = style.figure(style.PAGE, 2.6)
    for ax, name in zip(figure.subplots(1, 2), tables, strict=True):
      ax.set(xlabel=_L0, ylabel=METRICS[name].label)
      if tables[name]:  # none where every SAE has L0 = 0
        _draw_panel(ax, tables[name], lines)
        style.log_axis(ax.xaxis, [row['l0'] for row in tables[name]])
    first = rows[0]
    place = f'{first["site"]} of layer {first["layer"]}'
    style.title(figure, f'{title_of(first)}; {place}')
    _add_legend(figure, tables['fvu'], lines)
  style.save(figure, folder, 'pareto')


def count(table: Sequence[Row]) -> int:
  """Returns how many SAEs a table has."""
  return sum(row['drawn'] == 'run' for row in table)


def title_of(row: Row) -> str:
  """Returns what runs that are held against each other share, in words."""
  return (
    f'{row["model"]}, {row["num_latents"]:,} latents, {row["tokens"]:,} tokens'
  )


def _runs(rows, metric):
  """Yields a row for each SAE that has a place in the figure."""
  for row in sorted(rows, key=lambda row: (row['seed'], row['l0'])):
    value = finished.number(row, metric)
    if value is not None and row['l0'] > 0:
      yield {
        'drawn': 'run',
        'seed': row['seed'],
        'l0': row['l0'],
        'l0_settled': row['l0_settled'],
        'value': value,
        'low': None,
        'high': None,
        'num_seeds': 1,
      }


def _line(rows, metric):
  """Yields the knots of the line through an architecture's runs."""
  by_seed = comparison.fronts_by_seed(rows, metric)
  fronts = [front for front in by_seed.values() if len(front.l0s) > 1]
  if not fronts:
    return
  low = max(front.l0s[0] for front in fronts)
  high = min(front.l0s[-1] for front in fronts)
  for l0 in sorted({l0 for front in fronts for l0 in front.l0s}):
    if low <= l0 <= high:
      values = [front.at(l0) for front in fronts]
      yield {
        'drawn': 'line',
        'seed': None,
        'l0': l0,
        'l0_settled': True,
        'value': float(np.mean(values)),
        'low': min(values),
        'high': max(values),
        'num_seeds': len(values),
      }


def _draw_panel(ax, table, lines):
  """Draws one place's lines, bands and runs."""
  metric = METRICS[table[0]['metric']]
  for kind, rows in finished.groups(table, finished.KIND).items():
    _draw_kind(ax, rows, lines[kind])
  if metric.ideal is not None:
    ax.axhline(metric.ideal, color='0.4', linewidth=0.8, zorder=1)
  least = min(row['value'] for row in table)
  if metric.floor is not None and least >= metric.floor:
    ax.set_ylim(bottom=metric.floor)
  ax.yaxis.set_major_locator(ticker.MaxNLocator(5, steps=(1, 2, 2.5, 5, 10)))
  if metric.is_share:
    ax.yaxis.set_major_formatter(ticker.PercentFormatter(1))


def _draw_kind(ax, rows, line):
  """One architecture's line; its unsettled runs are hollow, off the line."""
  knots = [row for row in rows if row['drawn'] == 'line']
  l0s = [row['l0'] for row in knots]
  look = {'color': line.color, 'linestyle': line.linestyle}
  ax.plot(l0s, [row['value'] for row in knots], **look)
  if any(row['num_seeds'] > 1 for row in knots):
    low, high = ([row[end] for row in knots] for end in ('low', 'high'))
    ax.fill_between(l0s, low, high, color=line.color, alpha=0.2, linewidth=0)
  all_runs = [row for row in rows if row['drawn'] == 'run']
  has_seeds = len({row['seed'] for row in all_runs}) > 1
  for is_settled in (True, False):
    runs = [row for row in all_runs if row['l0_settled'] is is_settled]
    ax.plot(
      [row['l0'] for row in runs],
      [row['value'] for row in runs],
      line.marker,
      markersize=3 if has_seeds else 4,
      color=line.color,
      markerfacecolor=line.color if is_settled else 'none',
      clip_on=not runs,  # markers at zero are seen whole; none has no extent
    )


def _add_legend(figure, table, lines):
  """Adds a legend, with what marks and bands are; returns its height."""
  drawn = finished.groups(table, finished.KIND)
  most = max((row['num_seeds'] for row in table), default=0)
  notes = []
  if most > 1:
    notes.append(f'line and band: mean and range of up to {most} seeds')
  if not all(row['l0_settled'] for row in table):
    notes.append('hollow: L0 has not settled')
  names = style.names(drawn)
  entries = {', '.join(names[kind]): lines[kind] for kind in drawn}
  return style.legend(figure, entries, notes)
