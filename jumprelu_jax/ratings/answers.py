"""Raters' answers, in one SQLite file that only grows.

An answer is on disk when `save` returns, and is there after SIGKILL and after a
loss of power (https://sqlite.org/pragma.html#pragma_synchronous). A later one
of the same rater to the same item counts in place of the earlier, which stays.
The checksum of an answer is of all before it too, so that none is lost or
changed unnoticed.
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

from jumprelu_jax import errors
from jumprelu_jax import seals

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
    at TEXT NOT NULL,
    checksum TEXT NOT NULL
  );
  CREATE TABLE IF NOT EXISTS keys (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
  );
  COMMIT;
"""
_COLUMNS = 'rater, item, rating, explanation, at'
# Files of earlier versions: their rows have none.
_ADD_CHECKSUM = (
  "ALTER TABLE answers ADD COLUMN checksum TEXT NOT NULL DEFAULT ''"
)


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
  """Makes the file, if it is not there.

  Raises errors.InputError, as all functions here do, if it is damaged.
  """
  with _opened(path) as connection:
    pathlib.Path(path).chmod(0o600)  # of a file that is this user's
    connection.executescript(_TABLES)
    if not _has_checksums(connection):
      connection.execute(_ADD_CHECKSUM)


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
      before = connection.execute(
        'SELECT checksum FROM answers ORDER BY id DESC LIMIT 1'
      ).fetchone()
      now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
      row = (rater, item, rating, explanation, now)
      checksum = seals.line(before[0] if before else '', *row)
      connection.execute(
        f'INSERT INTO answers ({_COLUMNS}, checksum) VALUES (?, ?, ?, ?, ?, ?)',
        (*row, checksum),
      )


def history(path: str | os.PathLike) -> list[Answer]:
  """Returns all answers ever given, oldest first; [] if there is no file."""
  if not pathlib.Path(path).exists():
    return []
  with _opened(path) as connection:
    (problem,) = connection.execute('PRAGMA integrity_check(1)').fetchone()
    if problem != 'ok':
      raise _damaged(path, problem)
    given = connection.execute(
      "SELECT max(seq) FROM sqlite_sequence WHERE name = 'answers'"
    ).fetchone()[0]
    added = 'checksum' if _has_checksums(connection) else "''"
    rows = connection.execute(
      f'SELECT id, {added}, {_COLUMNS} FROM answers ORDER BY id'
    ).fetchall()
  before = ''
  for count, (number, checksum, *row) in enumerate(rows, start=1):
    # Those of earlier versions, without a checksum, come first.
    is_good = not (checksum or before) or checksum == seals.line(before, *row)
    if not is_good or number != count:
      raise _damaged(path, f'answer {count} is not what was stored')
    before = checksum
  if (given or 0) != len(rows):
    raise _damaged(path, f'it has {len(rows)} answers of {given}')
  return [Answer(*row) for _, _, *row in rows]


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
  try:
    connection = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
    try:
      # With a rollback journal, unlike a WAL, every commit waits for the disk;
      # EXTRA waits for the journal's removal too.
      connection.execute('PRAGMA journal_mode = DELETE')
      connection.execute('PRAGMA synchronous = EXTRA')
      yield connection
    finally:
      connection.close()
  # Text that is not UTF-8 is an OperationalError in some versions only.
  except (sqlite3.Error, UnicodeDecodeError) as error:
    raise _damaged(path, error) from error


def _has_checksums(connection):
  columns = connection.execute('PRAGMA table_info(answers)').fetchall()
  return 'checksum' in [name for _, name, *_ in columns]


def _damaged(path, problem):
  return errors.InputError(
    f'{path} cannot be used, or is damaged: {problem}. Restore it from a copy.'
  )
