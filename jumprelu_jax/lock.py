"""A lock on a folder that the end of its process releases, however it ends."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import errno
import fcntl
import json
import os
import pathlib
import socket
import time

from jumprelu_jax import errors
from jumprelu_jax import json_files
from jumprelu_jax import progress

# Of file systems that have no locks.
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@contextlib.contextmanager
def held(path: str | os.PathLike) -> Iterator[None]:
  """Holds a lock while it lasts.

  The kernel holds it for the process (`flock`), so that after SIGKILL it is
  free; the file that may be left then says no more than who had it.

  Args:
    path: a file, made and removed again; its folder must be there.

  Raises:
    errors.InputError: another process holds it.
  """
  path = pathlib.Path(path)
  file = _acquire(path)
  try:
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(_holder()).encode(), 0)
    yield
  finally:
    # Before it is released: whoever waits for it then sees that it is gone.
    path.unlink(missing_ok=True)
    os.close(file)


def _acquire(path):
  """Returns a locked file descriptor of the file that is at the path."""
  while True:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      os.close(file)
      raise errors.InputError(_refusal(path)) from error
    except OSError as error:
      if error.errno not in _UNSUPPORTED:
        os.close(file)
        raise
      progress.say(
        f'{path}: this file system has no locks ({error.strerror}); make sure '
        'yourself that no other run is in the folder'
      )
      return file
    if _is_at(file, path):
      return file
    os.close(file)  # its last holder has removed it meanwhile


def _is_at(file, path):
  try:
    return os.path.samestat(os.fstat(file), os.stat(path))
  except FileNotFoundError:
    return False


def _holder():
  return {
    'pid': os.getpid(),
    'host': socket.gethostname(),
    'since': time.strftime('%Y-%m-%d %H:%M:%S'),
  }


def _refusal(path):
  try:
    holder = json_files.parse_object(path.read_text())
    who = f'process {holder["pid"]} on {holder["host"]}, {holder["since"]}'
  except (OSError, ValueError, TypeError, KeyError):  # it is just being written
    who = 'one that has just begun'
  return (
    f'{path.parent} is in use by another run ({who}); wait for it, end it, or '
    'give another folder.'
  )
