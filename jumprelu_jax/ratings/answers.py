"""Raters' answers, in one SQLite file that only grows.

An answer is on disk when `save` returns, and is there after SIGKILL and after a
loss of power (https://sqlite.org/pragma.html#pragma_synchronous). A later one
of the same rater to the same item counts in place of the earlier, which stays.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import datetime
import os
import pathlib
import secrets
import sqlite3

#: Answers to 'Is this latent mostly monosemantic?', by their scores 0, 1, 2.
RATINGS = ('no', 'maybe', 'yes')

_WAIT_S = 30.0  # for another writer
_TABLES = """
  BEGIN IMMEDIATE;
  CREATE TABLE IF NOT EXISTS answers (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    rater TEXT NOT NULL,
    item TEXT NOT NULL,
    rating TEXT NOT NULL CHECK (rating IN ('no', 'maybe', 'yes')),
    explanation TEXT NOT NULL,
    at TEXT NOT NULL
  );
  CREATE TABLE IF NOT EXISTS keys (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
  );
  COMMIT;
"""
_COLUMNS = 'rater, item, rating, explanation, at'


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a rater said of an item.

  Attributes:
    rater: a name.
    item: a name.
    rating: one of RATINGS.
    explanation: one line, or empty.
    at: when, UTC, as ISO 8601 has it.
  """

  rater: str
  item: str
  rating: str
  explanation: str
  at: str

  @property
  def score(self) -> int:
    """0, 1 or 2 for no, maybe and yes."""
    return RATINGS.index(self.rating)


def create(path: str | os.PathLike) -> None:
  """Makes the file, if it is not there."""
  with _opened(path) as connection:
    connection.executescript(_TABLES)


def save(
  path: str | os.PathLike, rater: str, item: str, rating: str, explanation: str
) -> None:
  """Adds an answer, unless it is the one that counts already."""
  with _opened(path) as connection, connection:
    connection.execute('BEGIN IMMEDIATE')
    last = connection.execute(
      'SELECT rating, explanation FROM answers WHERE rater = ? AND item = ? '
      'ORDER BY id DESC LIMIT 1',
      (rater, item),
    ).fetchone()
    if last != (rating, explanation):
      now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
      connection.execute(
        f'INSERT INTO answers ({_COLUMNS}) VALUES (?, ?, ?, ?, ?)',
        (rater, item, rating, explanation, now),
      )


def history(path: str | os.PathLike) -> list[Answer]:
  """Returns all answers ever given, oldest first; [] if there is no file."""
  if not pathlib.Path(path).exists():
    return []
  with _opened(path) as connection:
    rows = connection.execute(f'SELECT {_COLUMNS} FROM answers ORDER BY id')
    return [Answer(*row) for row in rows]


def current(path: str | os.PathLike) -> dict[tuple[str, str], Answer]:
  """Returns the answers that count, by rater and item."""
  return {(one.rater, one.item): one for one in history(path)}


def key(path: str | os.PathLike) -> bytes:
  """Returns a secret of this file, the same at every call."""
  with _opened(path) as connection, connection:
    connection.execute('BEGIN IMMEDIATE')
    connection.execute(
      "INSERT OR IGNORE INTO keys VALUES ('forms', ?)", (secrets.token_hex(32),)
    )
    query = "SELECT value FROM keys WHERE name = 'forms'"
    return bytes.fromhex(connection.execute(query).fetchone()[0])


@contextlib.contextmanager
def _opened(path) -> Iterator[sqlite3.Connection]:
  """Yields a connection of its own: SQLite's are for one thread."""
  connection = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
  try:
    # With a rollback journal, unlike a WAL, every commit waits for the disk;
    # EXTRA waits for the journal's removal too.
    connection.execute('PRAGMA journal_mode = DELETE')
    connection.execute('PRAGMA synchronous = EXTRA')
    yield connection
  finally:
    connection.close()
