"""Plots of results."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import os
import pathlib

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402 (the backend comes first)
from matplotlib import ticker  # noqa: E402

_PANELS = (
  ('delta_lm_loss', 'Delta LM loss (nats)'),
  ('fvu', 'Fraction of variance unexplained'),
)
_MARKERS = 'osD^v<>PX*'
_LEGEND_COLUMNS = 2


def pareto(
  rows: Sequence[Mapping[str, object]], folder: str | os.PathLike
) -> None:
  """Draws fidelity against sparsity: `pareto.png` and `pareto.pdf`.

  Args:
    rows: rows of results.csv with numbers as numbers; runs whose L0 has not
      settled are drawn hollow.
    folder: where the pictures are written.
  """
  rows = sorted(rows, key=lambda row: row['l0'])
  kinds = sorted({(row['architecture'], row['objective']) for row in rows})
  num_lines = -(-len(kinds) // _LEGEND_COLUMNS)  # of the legend
  is_hollow = any(not row['l0_settled'] for row in rows)
  with plt.rc_context({'font.size': 9, 'axes.grid': True, 'grid.alpha': 0.3}):
    size = (7.2, 3.1 + 0.2 * (num_lines - 1))
    figure, axes = plt.subplots(1, 2, figsize=size, layout='constrained')
    for ax, (metric, label) in zip(axes, _PANELS, strict=True):
      for kind, marker in zip(kinds, itertools.cycle(_MARKERS)):
        of_one = [
          r for r in rows if (r['architecture'], r['objective']) == kind
        ]
        _draw_line(ax, of_one, metric, ', '.join(kind), marker)
      ax.set_xlabel('L0 (active latents per token)')
      ax.set_ylabel(label)
      ax.set_ylim(bottom=0)
    _set_log_axes(axes, [row['l0'] for row in rows])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
      handles,
      labels,
      loc='outside lower left',
      ncols=_LEGEND_COLUMNS,
      fontsize=8,
      alignment='left',
      title='hollow: L0 has not settled' if is_hollow else None,
      title_fontsize=8,
      frameon=False,
    )
    figure.suptitle(_title(rows[0]), x=0.01, ha='left', fontsize=9)
    for suffix in ('png', 'pdf'):
      path = pathlib.Path(folder) / f'pareto.{suffix}'
      figure.savefig(path, dpi=200)
    plt.close(figure)


def _draw_line(ax, rows, metric, label, marker):
  """One architecture's line; its unsettled runs are hollow, off the line."""
  settled = [r for r in rows if r['l0_settled']]
  unsettled = [r for r in rows if not r['l0_settled']]
  (line,) = ax.plot(
    [r['l0'] for r in settled],
    [r[metric] for r in settled],
    marker=marker,
    markersize=4,
    label=label,
    clip_on=not settled,  # markers at zero are seen whole; none has no extent
  )
  if unsettled:
    ax.plot(
      [r['l0'] for r in unsettled],
      [r[metric] for r in unsettled],
      marker,
      markerfacecolor='none',
      color=line.get_color(),
      markersize=4,
    )


def _set_log_axes(axes, l0s):
  """Log L0 axes with plain-number ticks at 1, 2 and 5 times powers of ten."""
  for ax in axes:
    ax.set_xscale('log')
    ax.set_xlim(min(l0s) / 1.3, max(l0s) * 1.3)
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(ticker.FormatStrFormatter('%g'))
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())


def _title(row):
  return (
    f'{row["model"]}, {row["site"]} of layer {row["layer"]}, '
    f'{row["num_latents"]:,} latents, {row["tokens"]:,} tokens'
  )
