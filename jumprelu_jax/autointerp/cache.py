"""Questions and answers on disk, so that none is paid for twice.

An SQLite file. An answer is on the disk before it is used: a process that is
killed loses what was under way and nothing else. Reasons for having no answer
are kept too, and asked again only on demand.
"""

from __future__ import annotations

from collections.abc import Iterable
import os
import pathlib
import sqlite3

from jumprelu_jax import errors
from jumprelu_jax.autointerp.requests import Answer

_TABLE = """
CREATE TABLE IF NOT EXISTS answers (
  key TEXT PRIMARY KEY,
  request TEXT NOT NULL,
  text TEXT NOT NULL,
  reason TEXT NOT NULL,
  detail TEXT NOT NULL,
  tokens_in INTEGER NOT NULL,
  tokens_out INTEGER NOT NULL
)
"""
_BUSY_S = 60  # while another process writes


class Cache:
  """Answers by key. Several processes may share a file."""

  def __init__(self, path: str | os.PathLike, ignored: Iterable[str] = ()):
    """Opens a file, or makes it.

    Args:
      path: of the file.
      ignored: reasons for having no answer that are as if not kept, so that it
        is asked again.

    Raises:
      errors.InputError: it cannot be made, or is something else.
    """
    self._path = path = pathlib.Path(path)
    self._ignored = frozenset(ignored)
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      # Every statement is a transaction of its own.
      self._file = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
      self._file.execute('PRAGMA synchronous=FULL')
      self._file.execute(_TABLE)
    except (sqlite3.Error, OSError) as error:
      raise errors.InputError(
        f'{path} cannot be used to keep answers ({error}); give another '
        '--cache.'
      ) from error

  def get(self, key: str) -> Answer | None:
    """Returns what is kept under a key."""
    columns = 'text, reason, detail, tokens_in, tokens_out'
    query = f'SELECT {columns} FROM answers WHERE key = ?'
    row = self._file.execute(query, (key,)).fetchone()
    answer = None if row is None else Answer(*row)
    is_ignored = answer is not None and answer.reason in self._ignored
    return None if is_ignored else answer

  def put(self, key: str, request: str, answer: Answer) -> None:
    """Keeps an answer, on the disk when this returns.

    Raises:
      errors.DiskFullError: no space is left for it.
    """
    row = (
      key,
      request,
      answer.text,
      answer.reason,
      answer.detail,
      answer.tokens_in,
      answer.tokens_out,
    )
    marks = ', '.join('?' * len(row))
    try:
      self._file.execute(
        f'INSERT OR REPLACE INTO answers VALUES ({marks})', row
      )
    except sqlite3.OperationalError as error:
      if 'full' not in str(error):
        raise
      raise errors.DiskFullError(
        f'{self._path}: no space is left for an answer ({error}); those before '
        'it are kept. Free some space and give the same command again: it goes '
        'on from there.'
      ) from error

  def close(self) -> None:
    """Closes the file."""
    self._file.close()
