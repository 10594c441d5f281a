"""What text a figure shows, and where: for tests that none overlaps."""

import itertools
from unittest import mock

from matplotlib import text as mpl_text
from matplotlib.backends import backend_agg


def extents(figure):
  """Returns [(text, box in pixels)] of what is really drawn."""
  found = {}
  draw = mpl_text.Text.draw

  def recorded(self, renderer, *args, **kwargs):
    if self.get_visible() and self.get_text().strip():
      found[self] = self.get_text(), self.get_window_extent(renderer)
    return draw(self, renderer, *args, **kwargs)

  with mock.patch.object(mpl_text.Text, 'draw', recorded):
    backend_agg.FigureCanvasAgg(figure).draw()
  return list(found.values())


def overlaps(figure, slack=1.0):
  """Returns the texts that touch each other, or leave the figure."""
  drawn = extents(figure)
  assert len(drawn) > 3
  wide, high = figure.canvas.get_width_height()
  wrong = [
    (text, 'leaves the figure')
    for text, box in drawn
    if min(box.x0, box.y0) < -slack
    or box.x1 > wide + slack
    or box.y1 > high + slack
  ]
  for (one, a), (other, b) in itertools.combinations(drawn, 2):
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    if width > slack and height > slack:
      wrong.append((one, other))
  return wrong


def legend_covers_data(figure):
  """True if a legend lies on a panel."""
  backend_agg.FigureCanvasAgg(figure).draw()
  panels = [ax.get_window_extent() for ax in figure.axes if ax.axison]
  return any(
    legend.get_window_extent().overlaps(panel)
    for legend in figure.legends
    for panel in panels
  )
