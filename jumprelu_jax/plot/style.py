"""What all figures share: their look, and how they are written.

Sizes are inches, as printed: a column of a paper is `COLUMN` wide and a page
`PAGE`, and text is of 7 to 8 points at that size. Colours are Okabe and Ito's;
markers and line styles differ too, so that a figure is readable in grey.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import io
import os
import pathlib
import textwrap

import matplotlib
from matplotlib import figure as mpl_figure
from matplotlib import lines as mpl_lines
from matplotlib import ticker
import numpy as np

from jumprelu_jax import results
from jumprelu_jax import whole

COLUMN, PAGE = 3.4, 7.0

# Okabe and Ito's without the yellow, which is too pale for lines on white.
_COLORS = (
    '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000',
)  # fmt: skip
# The field's main ones have a look of their own, the same in every figure.
_MAIN = ('jumprelu', 'gated', 'topk', 'batch_topk', 'relu')
_MARKERS = 'osD^v<>PX*'
_LINES = ('-', '--', '-.', ':', (0, (6, 1, 1, 1, 1, 1)))
_SETTINGS = {
  'font.size': 8,
  'axes.titlesize': 8,
  'axes.labelsize': 8,
  'xtick.labelsize': 7,
  'ytick.labelsize': 7,
  'legend.fontsize': 7.5,
  'legend.title_fontsize': 7.5,
  'figure.titlesize': 8,
  'figure.labelsize': 8,
  'axes.grid': True,
  'axes.axisbelow': True,
  'grid.alpha': 0.3,
  'lines.linewidth': 1.2,
  'lines.markersize': 4,
  'hatch.linewidth': 0.6,
  'pdf.fonttype': 42,  # letters stay letters
}
_DPI = 200
_MAX_DECADES_OF_125 = 1.8  # up to which ticks at 1, 2 and 5 have room
_LETTER = 0.062  # width of a letter of a legend or title
_TEXT_LINE = 0.16  # height of such a line


@dataclasses.dataclass(frozen=True)
class Line:
  """How one line of a figure looks, in matplotlib's words."""

  color: str
  marker: str
  linestyle: object


def lines(names: Iterable[object]) -> dict[object, Line]:
  """Returns a look for each name; no two alike among the first 70."""
  return {
    name: Line(
      _COLORS[i % len(_COLORS)],
      _MARKERS[i % len(_MARKERS)],
      _LINES[i % len(_LINES)],
    )
    for i, name in enumerate(names)
  }


def architectures(
  kinds: Iterable[tuple[str, ...]],
) -> dict[tuple[str, ...], Line]:
  """Returns a look for each kind, (architecture, …); no two alike.

  JumpReLU, Gated, TopK, BatchTopK and ReLU look the same in every figure; of
  several kinds of one of them the first does.
  """
  kinds = list(kinds)
  looks = list(lines(range(len(_MAIN) + len(kinds))).values())
  own, others = dict(zip(_MAIN, looks, strict=False)), iter(looks[len(_MAIN) :])
  return {kind: own.pop(kind[0], None) or next(others) for kind in kinds}


def names(
  kinds: Iterable[tuple[str, str]],
) -> dict[tuple[str, str], tuple[str, ...]]:
  """Returns what (architecture, objective)s are called beside each other.

  The objective is left out where the architecture is there with only one.
  """
  kinds = list(kinds)
  several = [architecture for architecture, _ in kinds]
  return {
    kind: kind if several.count(kind[0]) > 1 else kind[:1] for kind in kinds
  }


def look():
  """Returns a context in which figures are made and written."""
  return matplotlib.rc_context(_SETTINGS)


def figure(width: float, height: float) -> mpl_figure.Figure:
  """Returns an empty figure, inches, that finds room for all its text."""
  return mpl_figure.Figure(figsize=(width, height), layout='constrained')


def save(
  figure: mpl_figure.Figure, folder: str | os.PathLike, name: str
) -> None:
  """Writes `name`.png and .pdf, each whole or not at all."""
  # Without a date, so that the same numbers give the same bytes.
  undated = {'CreationDate': None}
  kinds = {'png': {'dpi': _DPI}, 'pdf': {'metadata': undated}}
  for kind, options in kinds.items():
    # In memory: matplotlib's writers fail in odd ways where a disk is full.
    drawn = io.BytesIO()
    with look():
      figure.savefig(drawn, format=kind, **options)
    with whole.replacing(pathlib.Path(folder) / f'{name}.{kind}') as file:
      file.write(drawn.getbuffer())


def save_with_table(
  figure: mpl_figure.Figure,
  table: Sequence[Mapping[str, object]],
  folder: str | os.PathLike,
  name: str,
) -> None:
  """Writes `name`.png, .pdf and .csv, the numbers that are drawn."""
  save(figure, folder, name)
  results.write(table, pathlib.Path(folder) / f'{name}.csv', list(table[0]))


def legend(
  figure: mpl_figure.Figure, entries: Mapping[str, Line], notes: Sequence[str]
) -> float:
  """Puts a legend below the panels, and makes the figure taller by it.

  Args:
    figure: without a legend so far.
    entries: label → look.
    notes: lines above the entries.

  Returns:
    The height that was added, inches.
  """
  handles = [
    mpl_lines.Line2D([], [], **dataclasses.asdict(look), label=label)
    for label, look in entries.items()
  ]
  longest = max(map(len, entries), default=0)
  room = figure.get_figwidth() / (longest * _LETTER + 0.6)
  columns = max(1, min(len(handles), int(room)))
  text_lines = len(notes) + -(-len(handles) // columns)
  height = _TEXT_LINE * text_lines
  figure.set_figheight(figure.get_figheight() + height)
  figure.legend(
    handles=handles,
    loc='outside lower left',
    ncols=columns,
    alignment='left',
    title='\n'.join(notes) or None,
    handlelength=3,
    frameon=False,
  )
  return height


def title(
  figure: mpl_figure.Figure, text: str, notes: Sequence[str] = ()
) -> None:
  """Puts a title, and notes below it, at the left of the top."""
  width = int(figure.get_figwidth() / _LETTER)
  text_lines = [*textwrap.wrap(text, width), *notes]
  figure.set_figheight(figure.get_figheight() + _TEXT_LINE * len(text_lines))
  figure.suptitle('\n'.join(text_lines), x=0.01, ha='left')


def log_axis(axis, values: Iterable[float], *, has_margin=True) -> None:
  """Makes a log axis from its least to its greatest value, plain numbers.

  Args:
    axis: of an Axes, x or y.
    values: positive numbers, at least one.
    has_margin: leave room beyond them.
  """
  low, high = min(values), max(values)
  decades = np.log10(high / low)
  axis.axes.set(**{f'{axis.axis_name}scale': 'log'})
  margin = max(1.06, (high / low) ** 0.06) if has_margin else 1
  axis.axes.set(**{f'{axis.axis_name}lim': (low / margin, high * margin)})
  if decades < 0.5:  # may hold no round number
    axis.set_major_locator(ticker.MaxNLocator(3, min_n_ticks=2))
  else:
    subs = (1, 2, 5) if decades < _MAX_DECADES_OF_125 else (1,)
    axis.set_major_locator(ticker.LogLocator(subs=subs, numticks=12))
  axis.set_major_formatter(ticker.FormatStrFormatter('%g'))
  axis.set_minor_formatter(ticker.NullFormatter())
