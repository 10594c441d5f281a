"""All figures that finished runs can give."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import functools
import os
import re

from matplotlib import figure as mpl_figure

from jumprelu_jax import finished
from jumprelu_jax import progress
from jumprelu_jax.plot import curves
from jumprelu_jax.plot import estimators
from jumprelu_jax.plot import frequencies
from jumprelu_jax.plot import fronts
from jumprelu_jax.plot import style
from jumprelu_jax.plot import toy


@dataclasses.dataclass(frozen=True)
class Entry:
  """A figure that can be drawn.

  Attributes:
    name: of its files.
    table: the numbers drawn; [] where no SAE has them.
    draw: table → figure.
    num_drawn: SAEs that are in the figure.
    num_saes: SAEs that could be.
  """

  name: str
  table: list[dict[str, object]]
  draw: Callable[[list[dict[str, object]]], mpl_figure.Figure]
  num_drawn: int = 0
  num_saes: int = 0


def of_runs(rows: Sequence[finished.Row]) -> Iterator[Entry]:
  """Yields the figures of runs of one `finished.SETTING`."""
  lines = style.architectures(finished.groups(rows, finished.KIND))
  title = fronts.title_of(rows[0])
  for metric in fronts.METRICS:
    table = fronts.table_of(rows, metric)
    draw = functools.partial(fronts.draw, lines=lines, title=title)
    yield Entry(metric, table, draw, fronts.count(table), len(rows))
  for (layer, site), here in finished.groups(rows, finished.PLACE).items():
    place = re.sub(r'\W+', '_', f'{site}_{layer}')
    titled = {'title': f'{title}; {site} of layer {layer}'}
    table = frequencies.table_of(here)
    draw = functools.partial(frequencies.draw, **titled)
    count = frequencies.count(table)
    yield Entry(f'frequencies_{place}', table, draw, count, len(here))
    for metric in curves.METRICS:
      table = curves.table_of(here, metric)
      draw = functools.partial(curves.draw, **titled)
      count = curves.count(table)
      yield Entry(f'curves_{metric}_{place}', table, draw, count, len(here))


def save(entries: Iterable[Entry], folder: str | os.PathLike) -> None:
  """Writes figures with their tables; says which SAEs are in none."""
  for entry in entries:
    if entry.table:
      figure = entry.draw(entry.table)
      style.save_with_table(figure, entry.table, folder, entry.name)
    if entry.num_drawn < entry.num_saes:
      what = 'drawn' if entry.table else 'left out: it is'
      progress.say(
        f'{entry.name}: {what} in {entry.num_drawn} of {entry.num_saes} SAEs'
      )


def of_toys() -> Iterator[Entry]:
  """Yields the figures that need no runs."""
  yield Entry('jumprelu_toy', toy.table_of(), toy.draw)
  yield Entry('estimator_toy', estimators.table_of(), estimators.draw)
