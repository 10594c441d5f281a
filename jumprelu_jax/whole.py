"""Files that are seen whole or not at all, also after SIGKILL.

And after a loss of power: content is on the disk before a file has its name,
and the name is when the write returns. So what is written first is there
whenever what was written later is.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import errno
import json
import os
import pathlib
import socket
from typing import Any
from typing import BinaryIO

_BUFFER_BYTES = 1 << 20  # spares system calls where pieces are small


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """Yields a file beside a path that takes its place at the end.

  A process that is killed leaves a *.partial that nobody reads; one that fails
  leaves nothing. Raises OSError if the content cannot be written.
  """
  path = pathlib.Path(path)
  make_folder(path.parent)
  # Hosts may write the same file at once, so each has its own partial.
  writer = f'{socket.gethostname()}-{os.getpid()}'
  aside = path.with_name(f'{path.name}.{writer}.partial')
  try:
    with aside.open('wb', buffering=_BUFFER_BYTES) as file:
      yield file
      file.flush()
      os.fsync(file.fileno())  # some file systems tell of a full disk only here
    os.replace(aside, path)
    sync(path.parent)
  except BaseException as error:
    aside.unlink(missing_ok=True)
    if isinstance(error, OSError) and error.filename is None:
      error.filename = str(path)  # what a full disk says comes without it
    raise


def sync(path: str | os.PathLike) -> None:
  """Returns when a file's content, or a folder's names, are on the disk."""
  number = os.open(path, os.O_RDONLY)
  try:
    os.fsync(number)
  except OSError as error:
    if error.errno != errno.EINVAL:  # of file systems that have no such thing
      raise
  finally:
    os.close(number)


def sync_tree(folder: str | os.PathLike) -> None:
  """Returns when a folder, with all that is in it, is on the disk."""
  for path in pathlib.Path(folder).rglob('*'):
    sync(path)
  sync(folder)


def make_folder(path: str | os.PathLike) -> None:
  """Makes a folder, and those that it is in, unless they are there."""
  path = pathlib.Path(path)
  if path.is_dir():
    return
  if path.exists():
    raise NotADirectoryError(
      errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)
    )
  make_folder(path.parent)
  path.mkdir(exist_ok=True)
  sync(path.parent)


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a text file, UTF-8."""
  with replacing(path) as file:
    file.write(text.encode())


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes a value as JSON."""
  write_text(path, json.dumps(value, indent=2) + '\n')
