"""Packed text that a run keeps: made once, and read from then on.

What decides the sequences lies beside them as JSON, with their checksum, so
that those of something else are refused and damaged ones are found.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import pathlib

import numpy as np

from jumprelu_jax import errors
from jumprelu_jax import identity
from jumprelu_jax import json_files
from jumprelu_jax import progress
from jumprelu_jax import seals
from jumprelu_jax import whole
from jumprelu_jax.text import packing
from jumprelu_jax.text import sequences

_CHECKSUM = 'sequences_checksum'
# Of `overlap`: tokens that are compared, sequences that are looked for, tokens
# among which they are, sequences at a time, and the multiplier of the hash.
_PIECE = 32
_LOOKED_FOR = 2048
_LOOKED_AT = 1 << 25
_BLOCK = 4096
_FACTOR = 0x9E3779B97F4A7C15


def keep(
  path: pathlib.Path,
  wanted: Mapping[str, object],
  make_rows: Callable[[], Iterator[np.ndarray]],
) -> np.ndarray:
  """Returns the sequences of a file, which is written if it is not there.

  Args:
    path: the .npy file; a .json beside it says what it is of.
    wanted: what decides the sequences, 'sequences' (how many; 0 is all) among
      them.
    make_rows: returns the rows, int32 [L].

  Raises:
    errors.InputError: sequences of something else are there, or damaged ones.
  """
  beside = path.with_suffix('.json')
  if path.exists():
    found = _read_signed(beside)
    digest = found.pop(_CHECKSUM, None)
    if differing := identity.differences(found, wanted, 'wanted'):
      raise errors.InputError(
        f'{path} holds sequences of something else ({differing}); name '
        'another folder, or delete this file.'
      )
    if digest:
      _check_digest(path, digest)
      return sequences.open(path)
    # Killed before the checksum was written: they are packed again.
  _write_signed(beside, wanted)  # fails here if it cannot be written
  sequences.write(make_rows(), path, max_rows=wanted['sequences'])
  _write_signed(beside, {**wanted, _CHECKSUM: seals.digest(path)})
  tokens_NL = sequences.open(path)
  say_fewer(len(tokens_NL), wanted)
  return tokens_NL


def find(path: pathlib.Path, wanted: Mapping[str, object]) -> np.ndarray | None:
  """Returns the first sequences of a file of `keep`, if they are those wanted.

  Args:
    path: as `keep`; nothing is written.
    wanted: as `keep`; may ask for fewer sequences than were kept.

  Raises:
    errors.InputError: the file is damaged.
  """
  if not path.exists():
    return None
  found = _read_signed(path.with_suffix('.json'))
  digest = found.pop(_CHECKSUM, None)
  has, count = found.get('sequences'), wanted['sequences']
  is_enough = has == 0 or (has is not None and 0 < count <= has)
  if not digest or not is_enough or found != {**wanted, 'sequences': has}:
    return None
  _check_digest(path, digest)
  return sequences.open(path)[: count or None]


def say_fewer(found: int, wanted: Mapping[str, object]) -> None:
  """Says so if a text gave fewer sequences than were asked for."""
  if found < wanted['sequences']:
    progress.say(
      f'text {wanted["text"]}: all of it is {found:,} sequences of '
      f'{wanted["context_length"]} tokens, fewer than the '
      f'{wanted["sequences"]:,} asked for'
    )


def overlap(
  tokens_NL: np.ndarray, others_NL: np.ndarray, special_ids: tuple[int, ...]
) -> float:
  """Returns about which share of sequences is found among others.

  A sequence is found if the tokens in its middle, up to 32 and all text, follow
  each other in another one, wherever. Of many sequences, as many are looked at
  as take seconds, and the share is estimated.

  Args:
    tokens_NL: sequences, int32.
    others_NL: others, in which they are looked for.
    special_ids: tokens that are no text.
  """
  length = min(tokens_NL.shape[1], others_NL.shape[1]) - 1
  size = 1 << (min(length, _PIECE).bit_length() - 1)
  start = 1 + (tokens_NL.shape[1] - 1 - size) // 2
  pieces_NL = _some(tokens_NL, _LOOKED_FOR)[:, start : start + size]
  pieces_NL = pieces_NL[packing.is_text(pieces_NL, special_ids).all(axis=1)]
  if not len(pieces_NL):
    return 0.0
  wanted_N = _hash_pieces(pieces_NL, size)[:, 0]
  found_N = np.zeros(len(wanted_N), bool)
  some_NL = _some(others_NL, max(1, _LOOKED_AT // others_NL.shape[1]))
  for first in range(0, len(some_NL), _BLOCK):
    block_NL = some_NL[first : first + _BLOCK]
    found_N |= np.isin(wanted_N, _hash_pieces(block_NL, size))
  return min(1.0, float(found_N.mean()) * len(others_NL) / len(some_NL))


def _some(tokens_NL, count):
  """Returns at most so many sequences, from everywhere."""
  return tokens_NL[:: -(-len(tokens_NL) // count)]


def _hash_pieces(tokens_NL, size):
  """Returns a hash of each piece of `size` tokens, a power of two."""
  hashed_NL = tokens_NL.astype(np.uint64) + np.uint64(1)
  factor, span = _FACTOR, 1
  while span < size:
    shifted = hashed_NL[:, span:]
    hashed_NL = hashed_NL[:, :-span] * np.uint64(factor) + shifted
    factor, span = factor * factor % (1 << 64), 2 * span
  return hashed_NL


def _write_signed(path, content):
  try:
    whole.write_json(path, seals.signed(content))
  except OSError as error:
    raise errors.of_writing(error)(
      f'{path} cannot be written ({error.strerror}); mend that, or name '
      'another folder.'
    ) from error


def _read_signed(path):
  """Returns what is said of sequences; {} if nothing is."""
  if not path.exists():
    return {}
  try:
    return seals.check_signed(json_files.parse_object(path.read_bytes()))
  except ValueError as error:
    raise errors.InputError(
      f'{path} is damaged ({error}); delete it and '
      f'{path.with_suffix(".npy").name}: they are made again.'
    ) from error


def _check_digest(path, expected):
  if (found := seals.digest(path)) != expected:
    raise errors.InputError(
      f'{path} is damaged: its checksum is {found}, expected {expected}; '
      'delete it: the same sequences are made again.'
    )
