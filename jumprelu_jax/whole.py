"""Files that are seen whole or not at all, also after SIGKILL."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
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
  path.parent.mkdir(parents=True, exist_ok=True)
  # Hosts may write the same file at once, so each has its own partial.
  writer = f'{socket.gethostname()}-{os.getpid()}'
  aside = path.with_name(f'{path.name}.{writer}.partial')
  try:
    with aside.open('wb', buffering=_BUFFER_BYTES) as file:
      yield file
      file.flush()
      os.fsync(file.fileno())  # some file systems tell of a full disk only here
    os.replace(aside, path)
  except BaseException as error:
    aside.unlink(missing_ok=True)
    if isinstance(error, OSError) and error.filename is None:
      error.filename = str(path)  # what a full disk says comes without it
    raise


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a text file, UTF-8."""
  with replacing(path) as file:
    file.write(text.encode())


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes a value as JSON."""
  write_text(path, json.dumps(value, indent=2) + '\n')
