"""Files damaged many times over; their reader must notice or not care."""

from collections.abc import Callable
import dataclasses
import pathlib

import numpy as np

from jumprelu_jax import errors

#: What this file has done, by kind: (told of, of no consequence).
FOUND = {}


def truncated(content, rng):
  return content[: rng.integers(len(content))]


def flipped(content, rng):
  place, changed = int(rng.integers(len(content))), bytearray(content)
  changed[place] ^= 1 << int(rng.integers(8))
  return bytes(changed)


def another_byte(content, rng):
  """Most often of digits and letters another, so that the form stays."""
  place, changed = int(rng.integers(len(content))), bytearray(content)
  changed[place] = int(rng.choice(list(b'0123456789abcdef".,-{} ')))
  return bytes(changed)


def blanked(content, rng):
  first, last = sorted(rng.integers(len(content) + 1, size=2))
  return content[:first] + bytes(last - first) + content[last:]


def repeated(content, rng):
  first, last = sorted(rng.integers(len(content) + 1, size=2))
  return content[:last] + content[first:]


DAMAGES = (flipped, another_byte, flipped, truncated, another_byte, blanked,
           repeated)  # fmt: skip


@dataclasses.dataclass
class Kind:
  """A kind of file: its path, how often to damage it, and what reads it."""

  path: pathlib.Path
  times: int
  read: Callable


class RedoneError(Exception):
  """Work would be done again, which ends with the same bits."""


def check(name, kind):
  """Damages a file; every time, its reader must tell, or not care."""
  content, expected = kind.path.read_bytes(), kind.read()
  rng = np.random.default_rng([len(name), *name.encode()])
  told = harmless = 0
  for i in range(kind.times):
    damaged = DAMAGES[i % len(DAMAGES)](content, rng)
    _replace(kind.path, damaged)
    try:
      got = kind.read()
    except errors.InputError as error:
      told += 1 if len(str(error)) > 30 else 0
      continue
    except RedoneError:
      harmless += 1
      continue
    finally:
      _replace(kind.path, content)
    assert got == expected, (name, i, DAMAGES[i % len(DAMAGES)].__name__)
    harmless += 1
  FOUND[name] = (told, harmless)
  # The damage has teeth: a reader that never tells would pass unread.
  assert told, name


def count_flips(kind, rng):
  """Flips one bit at a time; returns how often it was told, or did no harm.

  A flip that changes what is read, without an error, fails.
  """
  content, expected = kind.path.read_bytes(), kind.read()
  told = 0
  for _ in range(kind.times):
    _replace(kind.path, flipped(content, rng))
    try:
      assert kind.read() == expected, f'{kind.path}: a flip goes unnoticed'
    except errors.InputError:
      told += 1
    except RedoneError:
      pass
    finally:
      _replace(kind.path, content)
  return told, kind.times - told


def _replace(path, content):
  aside = path.with_name(path.name + '.aside')
  aside.write_bytes(content)
  aside.replace(path)
