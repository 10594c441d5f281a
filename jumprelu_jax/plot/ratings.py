"""How raters answered: a panel for all SAEs, one for each sparsity."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import figure as mpl_figure
from matplotlib import ticker

from jumprelu_jax import finished
from jumprelu_jax.plot import style

_RATINGS = ('yes', 'maybe', 'no')
_ROOM = 0.8  # of that between two groups, for the architectures
_NOTE = "whiskers: Wilson's 95% intervals, clustered by latent"


def draw(table: Sequence[finished.Row], title: str) -> mpl_figure.Figure:
  """Draws shares with their intervals.

  Left: of each answer, beside each other for architectures. Right: of Yes
  alone, against sparsity.

  Args:
    table: from `ratings.rates.table`, with a rating at least.
    title: what all rows share.
  """
  rows = [row for row in table if row['architecture']]
  kinds = finished.groups(rows, ('architecture',))
  looks = {name: look for (name,), look in style.architectures(kinds).items()}
  overall = [row for row in rows if row['sparsity'] == '']
  of_yes = [
    row for row in rows if row['sparsity'] != '' and row['rating'] == 'yes'
  ]
  with style.look():
    figure = style.figure(style.PAGE, 2.4)
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_shares(left, overall, 'rating', _RATINGS, looks)
    left.set_title('Is this latent mostly monosemantic?')
    left.set_ylabel('Share of ratings')
    left.set_xticklabels([rating.capitalize() for rating in _RATINGS])
    sparsities = sorted({row['sparsity'] for row in of_yes})
    _draw_shares(right, of_yes, 'sparsity', sparsities, looks)
    right.set_title('Yes, at each sparsity')
    right.set_xlabel('L0 (active latents per token)')
    right.set_xticklabels([f'{sparsity:g}' for sparsity in sparsities])
    left.set_ylim(0, 1)
    left.yaxis.set_major_formatter(ticker.PercentFormatter(1))
    style.title(figure, title)
    style.legend(figure, looks, [_NOTE])
  return figure


def _draw_shares(ax, rows, by, values, looks):
  """Draws bars with whiskers: a group for each value, in it architectures."""
  width = _ROOM / len(looks)
  for i, (name, look) in enumerate(looks.items()):
    own = [row for row in rows if row['architecture'] == name]
    first = width * (i + 0.5) - _ROOM / 2
    x = [values.index(row[by]) + first for row in own]
    shares = [row['share'] for row in own]
    ax.bar(x, shares, 0.9 * width, color=look.color, alpha=0.35)
    ends = [row['low'] for row in own], [row['high'] for row in own]
    ax.vlines(x, *ends, color=look.color)
    ax.plot(x, shares, look.marker, color=look.color, clip_on=False)
  ax.set_xticks(range(len(values)))
  ax.set_xlim(-0.5, len(values) - 0.5)
  ax.grid(visible=False, axis='x')
