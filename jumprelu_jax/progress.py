"""Progress of long work: a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import sys
import time

import tqdm

_SECONDS_PER_LINE = 10.0


class Progress:
  """Counts work done; made by `track`."""

  def __init__(self, label: str, total: int, unit: str, done: int):
    self._label, self._total, self._unit = label, total, unit
    self._first = self._done = done
    self._began = self._last_line = time.monotonic()
    self._is_terminal = sys.stderr.isatty()
    self._bar = None
    if self._is_terminal:
      self._bar = tqdm.tqdm(
        desc=label, total=total, initial=done, unit=f' {unit}', unit_scale=True
      )

  def advance(self, amount: int, **figures: float) -> None:
    """Adds to the work done; figures are shown beside it."""
    self._done += amount
    shown = {name: f'{value:.4g}' for name, value in figures.items()}
    if self._bar is not None:
      self._bar.set_postfix(shown, refresh=False)
      self._bar.update(amount)
      return
    now = time.monotonic()
    is_last = self._done >= self._total
    if is_last or now - self._last_line >= _SECONDS_PER_LINE:
      self._last_line = now
      self._print_line(now - self._began, shown)

  def close(self) -> None:
    """Ends the bar, if there is one."""
    if self._bar is not None:
      self._bar.close()

  def _print_line(self, elapsed, shown):
    rate = (self._done - self._first) / max(elapsed, 1e-9)
    remaining = (self._total - self._done) / max(rate, 1e-9)
    figures = ''.join(f', {name} {value}' for name, value in shown.items())
    say(
      f'{self._label}: {self._done:,}/{self._total:,} {self._unit}, '
      f'{rate:,.0f} {self._unit}/s, {remaining:.0f} s left{figures}'
    )


@contextlib.contextmanager
def track(
  label: str, total: int, unit: str, done: int = 0
) -> Iterator[Progress]:
  """Yields a Progress over `total` units of work, `done` of them before."""
  progress = Progress(label, total, unit, done)
  try:
    yield progress
  finally:
    progress.close()


def say(line: str) -> None:
  """Prints one line for people; standard output is left to results."""
  print(line, file=sys.stderr, flush=True)
