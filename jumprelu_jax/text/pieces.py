"""Token ids → text for people, one piece per token.

A byte-level tokenizer, or one with byte fallback, may cut a character into
several tokens, none of which is text. The pieces of a sequence concatenate to
its text all the same: a character belongs to the token that completes it, and
the tokens before have an empty piece. Bytes that are no character, as at the
ends of a window, are shown as ⟨E6⟩.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import itertools
import re

import numpy as np
import tokenizers

_LOST = '\ufffd'  # what decoders give for bytes that are no character
_BYTE = re.compile(r'<0x([0-9A-Fa-f]{2})>')


def _byte_letters():
  """Returns the byte of each letter that byte-level vocabularies spell with.

  Printable bytes of Latin-1 are themselves, the others U+0100 and up in order.
  """
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in printable]
  letters = {chr(byte): byte for byte in printable}
  return letters | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_LETTERS = _byte_letters()


@dataclasses.dataclass(frozen=True, eq=False)
class Pieces:
  """The tokens of a vocabulary; called with token ids it gives their pieces.

  Attributes:
    texts_V: each token alone, strings.
    cut: bytes of the tokens that are not whole characters, by id.
  """

  texts_V: np.ndarray
  cut: Mapping[int, bytes]

  def __call__(self, ids: Iterable[int]) -> list[str]:
    """Returns the piece of each token of a sequence."""
    ids = [int(token) for token in ids]
    if self.cut.keys().isdisjoint(ids):
      return [self.texts_V[token] for token in ids]
    return split(self._bytes(ids))

  def groups(self, ids: Iterable[int]) -> list[slice]:
    """Returns which tokens of a sequence to show as one: a character's."""
    ids = [int(token) for token in ids]
    if self.cut.keys().isdisjoint(ids):
      return [slice(i, i + 1) for i in range(len(ids))]
    parts = self._bytes(ids)
    ends = {0, *(end for _, end in _characters(parts))}
    lengths = itertools.accumulate(map(len, parts))
    stops = [i for i, end in enumerate(lengths, start=1) if end in ends]
    return [slice(*pair) for pair in itertools.pairwise([0, *stops])]

  def _bytes(self, ids):
    return [self.cut.get(i) or self.texts_V[i].encode() for i in ids]


def from_bytes(parts: Sequence[bytes]) -> Pieces:
  """Returns the pieces of a vocabulary, given every token's bytes."""
  texts = split_each(parts)
  cut = {i: part for i, part in enumerate(parts) if texts[i].encode() != part}
  return Pieces(np.array(texts, object), cut)


def to_bytes(
  tokenizer: tokenizers.Tokenizer, ids: Iterable[int]
) -> list[bytes]:
  """Returns the UTF-8 of each token as it is inside a text.

  Many decoders drop the space of what comes first, so each token is decoded
  behind another one, whose own text is then removed. A token that is not in the
  vocabulary is empty; special tokens are spelled out. A tokenizer without a
  decoder puts spaces between tokens, which are none of theirs.
  """
  ids = [int(token) for token in ids]
  if tokenizer.decoder is None:
    return [(tokenizer.id_to_token(token) or '').encode() for token in ids]
  first = tokenizer.encode('a', add_special_tokens=False).ids[-1:]

  def decode(before):
    rows = [[*before, token] for token in ids]
    return tokenizer.decode_batch(rows, skip_special_tokens=False)

  removed = tokenizer.decode(first, skip_special_tokens=False)
  texts = [
    text[len(removed) :] if text.startswith(removed) else alone
    for text, alone in zip(decode(first), decode([]), strict=True)
  ]
  return [
    (_LOST in text and _spelled(tokenizer, token)) or text.encode()
    for token, text in zip(ids, texts, strict=True)
  ]


def split(parts: Sequence[bytes]) -> list[str]:
  """Returns the text of consecutive tokens, one piece per token."""
  owners = [i for i, part in enumerate(parts) for _ in part]
  pieces = [''] * len(parts)
  for text, end in _characters(parts):
    pieces[owners[end - 1]] += text
  return pieces


def split_each(parts: Iterable[bytes]) -> list[str]:
  """Returns the text of tokens that do not follow one another."""
  return [split([part])[0] for part in parts]


def _characters(parts):
  """Yields each character, or byte that is none, and where it ends."""
  end = 0
  # Each byte that is no part of a character becomes a lone surrogate.
  for letter in b''.join(parts).decode('utf-8', 'surrogateescape'):
    is_byte = '\udc80' <= letter <= '\udcff'
    end += 1 if is_byte else len(letter.encode())
    yield f'⟨{ord(letter) - 0xDC00:02X}⟩' if is_byte else letter, end


def _spelled(tokenizer, token):
  """Returns the bytes that a token's name stands for; None if for none."""
  name, decode = tokenizer.id_to_token(token), tokenizer.decoder.decode
  if decode(['Ġ']) == ' ' and all(c in _BYTE_LETTERS for c in name):
    return bytes(_BYTE_LETTERS[letter] for letter in name)
  if decode(['<0x41>']) == 'A' and (found := _BYTE.fullmatch(name)):
    return bytes([int(found[1], 16)])
  return None
