"""Plots of results."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
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
_UNSETTLED = 'L0 not settled'


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
  with plt.rc_context({'font.size': 9, 'axes.grid': True, 'grid.alpha': 0.3}):
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.1), layout='constrained')
    for ax, (metric, label) in zip(axes, _PANELS, strict=True):
      for architecture in sorted({row['architecture'] for row in rows}):
        of_one = [r for r in rows if r['architecture'] == architecture]
        _draw_line(ax, of_one, metric, architecture)
      ax.set_xlabel('L0 (active latents per token)')
      ax.set_ylabel(label)
      ax.set_ylim(bottom=0)
    _set_log_axes(axes, [row['l0'] for row in rows])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside upper right', frameon=False)
    figure.suptitle(_title(rows[0]), x=0.01, ha='left', fontsize=9)
    for suffix in ('png', 'pdf'):
      path = pathlib.Path(folder) / f'pareto.{suffix}'
      figure.savefig(path, dpi=200)
    plt.close(figure)


def _draw_line(ax, rows, metric, architecture):
  """One architecture's line; its unsettled runs are hollow, off the line."""
  settled = [r for r in rows if r['l0_settled']]
  unsettled = [r for r in rows if not r['l0_settled']]
  (line,) = ax.plot(
    [r['l0'] for r in settled],
    [r[metric] for r in settled],
    marker='o',
    markersize=4,
    label=architecture,
    clip_on=False,  # markers at zero are seen whole
  )
  if unsettled:
    ax.plot(
      [r['l0'] for r in unsettled],
      [r[metric] for r in unsettled],
      'o',
      markerfacecolor='none',
      color=line.get_color(),
      markersize=4,
      label=f'{architecture}, {_UNSETTLED}',
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
