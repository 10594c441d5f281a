"""One long text → token ids, in pieces: the ids of encoding it at once.

Encoding takes some 170 bytes of memory for each character, so a book or a
corpus in one file is encoded in windows that overlap. Where a text may be cut
depends on normalizer, pre-tokenizer and model, so no place is assumed to be
safe: two windows are joined between two tokens in the middle of what both
hold, and only if both found the same tokens, at the same places, all around.
What a window finds near its edges does not count, and neither does what they
find where a few characters repeat: the tokens of a long run hang together from
one end of it to the other. Windows that are not joined are encoded as one.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
import dataclasses

import numpy as np
import tokenizers

from jumprelu_jax import errors
from jumprelu_jax import preemption

#: A text of more characters is encoded in windows of as many.
WINDOW = (
  1 << 16
) - 1  # so that windows are no multiple of a run's tokens apart
# Characters that two windows share. They must agree on the inner half.
_OVERLAP = 1 << 11
# As many characters vary if no period up to this one fills them.
_STRETCH, _PERIOD = 128, 16
# Windows that are not joined are encoded as one up to this many characters.
_LONGEST = 1 << 21
# Windows that are encoded at the same time, by the tokenizer's threads.
_AT_ONCE = 8


@dataclasses.dataclass(frozen=True)
class _Window:
  """Some characters of a text and their tokens.

  Attributes:
    text: the characters.
    first: index of the first in the whole text.
    ids_T: token ids.
    places_T2: where each token starts and ends in the whole text.
    done: tokens that have been given away.
  """

  text: str
  first: int
  ids_T: np.ndarray
  places_T2: np.ndarray
  done: int = 0

  @property
  def end(self) -> int:
    return self.first + len(self.text)


def encode(
  parts: Iterable[str], tokenizer: tokenizers.Tokenizer
) -> Iterator[np.ndarray]:
  """Yields the token ids (int32) of a text, without special tokens added.

  Args:
    parts: the text, cut anywhere; asked for as ids are.
    tokenizer: any.

  Raises:
    errors.InputError: windows do not agree, or a text cannot be encoded.
    preemption.PreemptedError: the process was asked to end.
  """
  added = tokenizer.get_added_tokens_decoder().values()
  longest = max((len(token.content) for token in added), default=0)
  overlap = max(_OVERLAP, 8 * longest)
  left, waiting = None, ''  # text after `left` that is to be joined to it
  for right in _windows(parts, tokenizer, max(WINDOW, 4 * overlap), overlap):
    if left is None:
      left = right
      continue
    if waiting:
      waiting += right.text[overlap:]
      # Each time twice as much, so that nothing is encoded often.
      if len(waiting) >= len(left.text):
        left, waiting = _extend(left, waiting, tokenizer), ''
      continue
    cut = _agreement(left, right)
    if cut is None:
      waiting = right.text[overlap:]
      continue
    yield left.ids_T[left.done : cut[0]]
    left = dataclasses.replace(right, done=cut[1])
  if waiting:
    left = _extend(left, waiting, tokenizer)
  if left is not None:
    yield left.ids_T[left.done :]


def encode_batch(
  texts: list[str], tokenizer: tokenizers.Tokenizer
) -> list[tokenizers.Encoding]:
  """Returns the encodings of texts without special tokens added.

  Raises:
    errors.InputError: the tokenizer has no token for some character.
  """
  try:
    return tokenizer.encode_batch(texts, add_special_tokens=False)
  except Exception as error:  # the library raises plain Exception
    raise errors.InputError(
      f'the tokenizer of the model cannot encode the text ({error}); give text '
      'of characters that it has tokens for.'
    ) from error


def _windows(parts, tokenizer, size, overlap):
  """Yields windows, each of which begins `overlap` before the last one ends."""
  first, texts = 0, []
  for text in _slices(parts, size, overlap):
    texts.append(text)
    if len(texts) == _AT_ONCE:
      yield from _encode(texts, first, tokenizer, overlap)
      first += sum(len(text) - overlap for text in texts)
      texts = []
  yield from _encode(texts, first, tokenizer, overlap)


def _slices(parts, size, overlap):
  """Yields texts of `size` characters, the last one shorter or longer."""
  held = ''
  for part in parts:
    held += part
    at = 0
    # What is left is longer than the overlap, so that the last window is too.
    while len(held) - at > size + overlap:
      yield held[at : at + size]
      at += size - overlap
    held = held[at:]
  if held:
    yield held


def _encode(texts, first, tokenizer, overlap):
  preemption.check(
    'encoding of a long text was stopped on request; the same command begins '
    'again.'
  )
  encodings = encode_batch(texts, tokenizer)
  for text, encoding in zip(texts, encodings, strict=True):
    yield _window(text, first, encoding)
    first += len(text) - overlap


def _window(text, first, encoding, done=0):
  places_T2 = np.array(encoding.offsets, np.int64).reshape(-1, 2) + first
  return _Window(text, first, np.array(encoding.ids, np.int32), places_T2, done)


def _agreement(left, right):
  """Returns the token of each window to join them at; None if there is none."""
  margin = (left.end - right.first) // 4
  low, high = right.first + margin, left.end - margin
  found = [_inside(window, low, high) for window in (left, right)]
  (a, b), (c, d) = found
  is_same = np.array_equal(left.ids_T[a:b], right.ids_T[c:d])
  if not is_same or not np.array_equal(
    left.places_T2[a:b], right.places_T2[c:d]
  ):
    return None
  if not _varies(right.text[low - right.first : high - right.first]):
    return None
  starts_T, ends_T = left.places_T2[a:b].T
  # A token may have no place of its own: some characters are several.
  between = 1 + np.flatnonzero(ends_T[:-1] <= starts_T[1:])
  if not len(between):
    return None
  middle = between[np.abs(starts_T[between] - (low + high) // 2).argmin()]
  return a + middle, c + middle


def _varies(text):
  """True if no stretch of a text repeats a few characters."""
  stretches = [
    text[i : i + _STRETCH] for i in range(0, len(text) - _STRETCH + 1, _STRETCH)
  ]
  return not any(
    one[period:] == one[:-period]
    for one in stretches
    for period in range(1, _PERIOD + 1)
  )


def _inside(window, low, high):
  """Returns the range of the tokens that touch some characters."""
  starts_T, ends_T = window.places_T2.T
  touching = np.flatnonzero((ends_T > low) & (starts_T < high))
  return (touching[0], touching[-1] + 1) if len(touching) else (0, 0)


def _extend(left, more, tokenizer):
  """Returns a window with more text at its end, encoded as one."""
  text = left.text + more
  if len(text) <= _LONGEST:
    (encoding,) = encode_batch([text], tokenizer)
    longer = _window(text, left.first, encoding, left.done)
    if np.array_equal(longer.ids_T[: left.done], left.ids_T[: left.done]):
      return longer
  raise errors.InputError(
    f'a text has {len(text):,} characters, from character {left.first:,} on, '
    'that cannot be encoded in pieces with the same tokens (a long run of one '
    f'character, for example), and at most {_LONGEST:,} are encoded at once; '
    'cut it into several documents.'
  )
