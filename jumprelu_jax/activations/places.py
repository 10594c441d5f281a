"""Where files lie: a folder of this machine, or a URL (gs://, s3://, ...).

Both kinds of place read and write whole contents by name. A write is seen whole
or not at all, also after SIGKILL. What the contents mean is none of this file's
business.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import os
import pathlib
import re
import shutil

import tensorstore as ts

from jumprelu_jax import errors
from jumprelu_jax import whole

# One context for all, since memory:// lives in its context. The pool holds the
# indices of zarr3 shards and blocks that two batches share; data are read once
# an epoch, so a larger pool would only displace what the rest of us needs.
CONTEXT = ts.Context({'cache_pool': {'total_bytes_limit': 64 << 20}})


class Local:
  """A folder of this machine."""

  def __init__(self, folder: str | os.PathLike):
    self._folder = pathlib.Path(folder)

  def child(self, name: str) -> pathlib.Path:
    """Returns the path of a name."""
    return self._folder / name

  def names(self) -> set[str]:
    """Returns the names that are there; none where there is no folder."""
    return set(os.listdir(self._folder)) if self._folder.is_dir() else set()

  def read(self, names: Sequence[str]) -> list[bytes | None]:
    """Returns the contents of some names, None for what is not there."""
    paths = [self._folder / name for name in names]
    return [path.read_bytes() if path.is_file() else None for path in paths]

  def write(self, name: str, content: bytes) -> None:
    """Writes a content whole; raises OSError and leaves the old one if not."""
    with whole.replacing(self._folder / name) as file:
      file.write(content)

  def delete(self, prefix: str) -> None:
    """Removes all names that begin so, folders with all that is in them."""
    for path in [self._folder / name for name in self.names()]:
      if path.name.startswith(prefix):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

  def free_bytes(self) -> int | None:
    """Returns the bytes that may still be written; None if nobody knows."""
    there = self._folder
    while not there.exists() and there != there.parent:
      there = there.parent
    return shutil.disk_usage(there).free


class Remote:
  """A folder at a URL, through tensorstore."""

  def __init__(self, url: str):
    self._url = str(url).rstrip('/') + '/'
    try:
      self._kvstore = ts.KvStore.open(self._url, context=CONTEXT).result()
    except ValueError as error:
      raise errors.InputError(
        f'{url} is no place that tensorstore can open: {brief(error)}; give a '
        'local folder or a URL such as gs://bucket/folder.'
      ) from error

  def child(self, name: str) -> str:
    """Returns the URL of a name."""
    return self._url + name

  def names(self) -> set[str]:
    """Returns the names that are there."""
    with _reading(self._url):
      keys = self._kvstore.list().result()
    return {key.decode().split('/')[0] for key in keys}

  def read(self, names: Sequence[str]) -> list[bytes | None]:
    """Returns the contents of some names, None for what is not there."""
    # All at once: each is a round trip.
    futures = [self._kvstore.read(name) for name in names]
    with _reading(self._url):
      results = [future.result() for future in futures]
    return [r.value if r.state == 'value' else None for r in results]

  def write(self, name: str, content: bytes) -> None:
    """Writes a content whole; raises OSError and leaves the old one if not."""
    with writing():
      self._kvstore.write(name, content).result()

  def delete(self, prefix: str) -> None:
    """Removes all names that begin so, folders with all that is in them."""
    after = prefix[:-1] + chr(ord(prefix[-1]) + 1)
    with writing():
      self._kvstore.delete_range(
        ts.KvStore.KeyRange(inclusive_min=prefix, exclusive_max=after)
      ).result()

  def free_bytes(self) -> int | None:
    """Returns the bytes that may still be written; None if nobody knows."""
    return None


def is_url(path: str | os.PathLike) -> bool:
  """True for gs://bucket/folder and the like, false for local paths."""
  return '://' in str(path)


def at(folder: str | os.PathLike) -> Local | Remote:
  """Returns the place that a path or a URL names.

  Raises:
    errors.InputError: the URL is of no kind that tensorstore knows.
  """
  return Remote(str(folder)) if is_url(folder) else Local(folder)


def kvstore(path: str | os.PathLike) -> str | dict[str, str]:
  """Returns tensorstore's spec of the folder at a path or a URL."""
  if is_url(path):
    return str(path).rstrip('/') + '/'
  return {'driver': 'file', 'path': os.path.abspath(path) + '/'}


@contextlib.contextmanager
def writing() -> Iterator[None]:
  """Turns tensorstore's errors of writing, all ValueError, into OSError."""
  try:
    yield
  except ValueError as error:
    code = re.search(r"os_error_code='(\d+)'", str(error))
    number = int(code[1]) if code else 0
    text = os.strerror(number) if number else brief(error)
    raise OSError(number, text) from error


@contextlib.contextmanager
def _reading(url):
  try:
    yield
  except ValueError as error:
    raise errors.InputError(
      f'{url} cannot be read: {brief(error)}; check the address, the access '
      'and the connection.'
    ) from error


def brief(error: Exception) -> str:
  """Returns tensorstore's message without the specs that it appends."""
  return str(error).split(' [tensorstore_spec=')[0]
