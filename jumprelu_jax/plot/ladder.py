"""A layout: a panel for each architecture, its SAEs in shades by their L0."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence

import matplotlib
from matplotlib import axes as mpl_axes
from matplotlib import cm
from matplotlib import colors
from matplotlib import figure as mpl_figure
from matplotlib import ticker

from jumprelu_jax import finished
from jumprelu_jax.plot import style

# Dark for few active latents; its last fifth is too pale for lines on white.
_SHADES = colors.ListedColormap(matplotlib.colormaps['cividis'].colors[:205])
_MAX_COLUMNS = 3
_MAX_LETTERS = 28  # of a panel's title


class Ladder:
  """A figure with a panel for each (architecture, objective).

  Attributes:
    figure: the figure.
    panels: each kind's rows of the table, and its axes.
  """

  def __init__(
    self,
    table: Sequence[Mapping[str, object]],
    title: str,
    notes: Sequence[str] = (),
  ):
    """Lays the panels out for a table with `l0` > 0; within `style.look`."""
    kinds = finished.groups(table, finished.KIND)
    columns = min(len(kinds), _MAX_COLUMNS)
    rows = -(-len(kinds) // columns)
    width = {1: style.COLUMN + 0.4, 2: 5.2}.get(columns, style.PAGE)
    self.figure = style.figure(width, 0.4 + 1.8 * rows)
    axes = self.figure.subplots(
      rows, columns, squeeze=False, sharex=True, sharey=True
    ).ravel()
    for ax in axes[len(kinds) :]:
      ax.set_axis_off()
    for ax in axes[max(0, len(kinds) - columns) : len(kinds)]:
      ax.tick_params(labelbottom=True)  # also above a place without a panel
    names = style.names(kinds)
    self.panels: list[tuple[mpl_axes.Axes, list]] = []
    for ax, (kind, of_one) in zip(axes, kinds.items(), strict=False):
      ax.set_title(_title(names[kind]))
      self.panels.append((ax, of_one))
    l0s = [row['l0'] for row in table]
    low, high = min(l0s), max(l0s)
    if low == high:  # a scale of one shade has no extent
      low, high = low / 1.1, high * 1.1
    self._shades = cm.ScalarMappable(colors.LogNorm(low, high), _SHADES)
    bar = self.figure.colorbar(
      self._shades,
      ax=list(axes),
      label='L0',
      fraction=0.05,
      pad=0.02,
      aspect=25 * rows,
    )
    style.log_axis(bar.ax.yaxis, (low, high), has_margin=False)
    bar.ax.yaxis.set_minor_locator(ticker.NullLocator())
    if not all(row['l0_settled'] for row in table):
      notes = [*notes, 'dashed: L0 has not settled']
    style.title(self.figure, title, notes)

  def shade(self, l0: float) -> tuple[float, ...]:
    """Returns an SAE's colour."""
    return self._shades.to_rgba(l0)

  def label(self, x: str, y: str) -> mpl_figure.Figure:
    """Labels the axes and returns the figure."""
    self.figure.supxlabel(x)
    self.figure.supylabel(y)
    return self.figure


def _title(words):
  """Returns a panel's title, on two lines where one is too short."""
  title = ', '.join(words)
  return title if len(title) < _MAX_LETTERS else ',\n'.join(words)
