"""Questions and answers on disk, so that none is paid for twice.

An SQLite file. An answer is on the disk before it is used: a process that is
killed loses what was under way and nothing else. Reasons for having no answer
are kept too, and asked again only on demand.
"""

from __future__ import annotations

from collections.abc import Iterable
import contextlib
import dataclasses
import os
import pathlib
import sqlite3

from jumprelu_jax import errors
from jumprelu_jax import seals
from jumprelu_jax.autointerp.requests import Answer

_TABLE = """
CREATE TABLE IF NOT EXISTS answers (
  key TEXT PRIMARY KEY,
  request TEXT NOT NULL,
  text TEXT NOT NULL,
  reason TEXT NOT NULL,
  detail TEXT NOT NULL,
  tokens_in INTEGER NOT NULL,
  tokens_out INTEGER NOT NULL,
  checksum TEXT NOT NULL
)
"""
# Files of earlier versions: their rows have none.
_ADD_CHECKSUM = (
  "ALTER TABLE answers ADD COLUMN checksum TEXT NOT NULL DEFAULT ''"
)
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
      columns = self._file.execute('PRAGMA table_info(answers)').fetchall()
      if 'checksum' not in [name for _, name, *_ in columns]:
        self._file.execute(_ADD_CHECKSUM)
    except (sqlite3.Error, OSError) as error:
      raise errors.InputError(
        f'{path} cannot be used to keep answers ({error}); give another '
        '--cache.'
      ) from error

  def get(self, key: str) -> Answer | None:
    """Returns what is kept under a key.

    Raises:
      errors.InputError: the file is damaged.
    """
    columns = 'request, text, reason, detail, tokens_in, tokens_out, checksum'
    query = f'SELECT {columns} FROM answers WHERE key = ?'
    with self._naming('read'):
      row = self._file.execute(query, (key,)).fetchone()
    if row is None:
      return None
    request, *values, checksum = row
    if checksum and checksum != seals.line(key, request, *values):
      raise errors.InputError(
        f'{self._path} is damaged: an answer is not what was kept. Restore the '
        'file, or give another --cache and ask again.'
      )
    answer = Answer(*values)
    if not checksum:  # a detail of earlier versions may repeat the key
      answer = dataclasses.replace(answer, detail='')
    return None if answer.reason in self._ignored else answer

  def put(self, key: str, request: str, answer: Answer) -> None:
    """Keeps an answer, on the disk when this returns.

    Raises:
      errors.DiskFullError: no space is left for it.
      errors.InputError: the file is damaged, or cannot be written.
    """
    query = 'SELECT tokens_in, tokens_out FROM answers WHERE key = ?'
    marks = ', '.join('?' * 8)
    with self._naming('written'):
      # What an answer that is replaced has cost stays spent.
      before = self._file.execute(query, (key,)).fetchone() or (0, 0)
      answer = dataclasses.replace(
        answer,
        tokens_in=answer.tokens_in + before[0],
        tokens_out=answer.tokens_out + before[1],
      )
      row = (key, request, *dataclasses.astuple(answer))
      self._file.execute(
        f'INSERT OR REPLACE INTO answers VALUES ({marks})',
        (*row, seals.line(*row)),
      )

  def spent(self) -> tuple[int, int, int]:
    """Returns requests, tokens in and tokens out of all that is kept."""
    with self._naming('read'):
      return self._file.execute(
        'SELECT count(*), coalesce(sum(tokens_in), 0), '
        'coalesce(sum(tokens_out), 0) FROM answers'
      ).fetchone()

  @contextlib.contextmanager
  def _naming(self, done):
    """Turns an error of SQLite into one that says what to do."""
    try:
      yield
    except sqlite3.Error as error:
      if 'full' in str(error):
        raise errors.DiskFullError(
          f'{self._path}: no space is left for an answer ({error}); those '
          'before it are kept. Free some space and give the same command '
          'again: it resumes there.'
        ) from error
      raise errors.InputError(
        f'{self._path} cannot be {done} ({error}); if it is damaged, restore '
        'it, or give another --cache and ask again.'
      ) from error

  def close(self) -> None:
    """Closes the file."""
    self._file.close()
