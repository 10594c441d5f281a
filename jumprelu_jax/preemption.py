"""SIGTERM as a notice: what runs saves its work and ends.

Who takes a machine away sends SIGTERM, and SIGKILL some seconds later. Only
launchers listen (`heard`); long work asks (`is_asked`, `check`) where it can
stop, and in a program that does not listen is never asked to.

Of several processes JAX itself listens, and tells all of them of one step at
which to stop (`reached`); their other stages go on until SIGKILL, which loses
no more than what they were at.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import os
import signal
import sys
import threading

import jax
from jax.experimental import multihost_utils

#: What the process ends with: EX_TEMPFAIL, "try again later".
EXIT_CODE = 75

_asked = threading.Event()
_NOTE = b'SIGTERM: saving what is done, then ending\n'


class PreemptedError(Exception):
  """Work was ended on request; says what is kept. Not an error of anyone's."""


@contextlib.contextmanager
def heard() -> Iterator[None]:
  """Takes the first SIGTERM for a notice while it lasts; a second one ends all.

  To be entered by the main thread.
  """

  def note(number, frame):
    del number, frame
    _asked.set()
    signal.signal(signal.SIGTERM, before)
    os.write(sys.__stderr__.fileno(), _NOTE)  # print may not be called here

  before = signal.signal(signal.SIGTERM, note)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)
    _asked.clear()


@contextlib.contextmanager
def unheard() -> Iterator[None]:
  """Lets SIGTERM end the process at once, as what has nothing to save wants.

  To be entered by the main thread; PreemptedError if it has come already.
  """
  before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
  try:
    check('it came before there was anything to save')
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def is_asked() -> bool:
  """True once this process was asked to end."""
  return _asked.is_set()


def check(kept: str) -> None:
  """Raises PreemptedError if this process was asked to end.

  Args:
    kept: says what is kept.
  """
  if is_asked():
    raise PreemptedError(kept)


def reached(step: int) -> bool:
  """True at the step after which all processes are to save and end.

  To be called by every process at every step, counted alike.
  """
  if jax.process_count() == 1:
    return is_asked()
  return multihost_utils.reached_preemption_sync_point(step)
