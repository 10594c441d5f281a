"""The one kind of error that is the user's to mend."""

from collections.abc import Mapping
import errno
import os
import struct
import tokenize
import zipfile

#: What NumPy and zipfile raise of damaged .npy and .npz files; no list of it is
#: promised, and this one was found by damaging them.
OF_DAMAGED_ARRAYS = (
  *(ValueError, TypeError, KeyError, AttributeError, OSError, EOFError),
  *(SyntaxError, tokenize.TokenError, struct.error, zipfile.BadZipFile),
  *(NotImplementedError, RuntimeError, MemoryError, OverflowError),
)


class InputError(ValueError):
  """Bad input: says what is wrong, what was expected and what to do.

  Raised before any long work and before anything on disk is changed. The
  launchers print it as one line; every other exception is a defect of ours and
  keeps its traceback.
  """


def check_least(least: float, values: Mapping[str, float]) -> None:
  """Raises InputError unless all numbers, by what users call them, are enough.

  NaN is not.
  """
  for name, value in values.items():
    if not value >= least:
      raise InputError(f'{name}={value}: expected {least} or more.')


class DiskFullError(InputError):
  """No space is left: says what was not written and what is still usable.

  An InputError that may come after long work: what was done before it is kept,
  and the same command goes on from there.
  """


def of_writing(error: OSError) -> type[InputError]:
  """Returns the kind of error that one of writing a file is to be told as."""
  is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
  return DiskFullError if is_full else InputError


# Of disks that fail, whoever met them first.
_OF_STORAGE = (
  *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS),
  *(errno.ENODEV, errno.ENXIO, errno.EREMOTEIO, errno.EFBIG),
)


def system_error(error: BaseException) -> OSError | None:
  """Returns the operating system's error behind an exception, if one is.

  Libraries raise others because of it, or quote it in their own.
  """
  if isinstance(error, OSError) and error.errno:
    return error
  chain = []
  while error is not None and error not in chain:
    chain.append(error)
    error = error.__cause__ or error.__context__
  for error in chain:
    number = getattr(error, 'errno', None)
    for code in _OF_STORAGE:
      if isinstance(error, OSError) and number == code:
        return error
      if os.strerror(code) in str(error):
        return OSError(code, os.strerror(code))
  return None


class NotFiniteError(InputError, FloatingPointError):
  """Training met a number that is not finite: says where, and what is kept.

  It comes after long work, too; what was saved before it is good.
  """
