"""Token ids → rows of one length, and which of their positions are text."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
import itertools

import numpy as np

from jumprelu_jax import errors

#: A document's token ids, in one piece or in several that follow each other.
Document = np.ndarray | Iterator[np.ndarray]


def pack(
  documents: Iterable[Document], length: int, *, bos_id: int, pad_id: int
) -> Iterator[np.ndarray]:
  """Returns rows full of documents laid end to end, separated by BOS.

  Every row starts with BOS, where a document goes on too. Only the last row may
  hold padding, and every row holds text. Documents are asked for as rows need
  them.

  Args:
    documents: token ids of each document; one leading BOS is dropped, for it
      gets one here, and documents without tokens are.
    length: positions in a row, BOS included.
    bos_id: id that starts every row and separates documents.
    pad_id: id that fills the last row up.

  Returns:
    Iterator of int32 rows [L].

  Raises:
    errors.InputError: length < 2.
  """
  _check_length(length)
  return _pack(_bodies(documents, bos_id), length, bos_id, pad_id)


def one_per_row(
  documents: Iterable[Document], length: int, *, bos_id: int, pad_id: int
) -> Iterator[np.ndarray]:
  """Returns one row for each document: BOS and its first length - 1 tokens.

  What is longer is cut off; what is shorter is padded. See `pack` for
  arguments, result and errors.
  """
  _check_length(length)
  return (
    _row(_beginning(pieces, length - 1), length, bos_id, pad_id)
    for pieces in _bodies(documents, bos_id)
  )


PACKINGS = {'pack': pack, 'document': one_per_row}


def is_text(tokens_BL, special_ids: tuple[int, ...]):
  """True where a token is no special token (BOS, EOS, PAD); NumPy or JAX."""
  result_BL = tokens_BL == tokens_BL
  for special_id in special_ids:
    result_BL &= tokens_BL != special_id
  return result_BL


def predicts_text(tokens_BL, special_ids: tuple[int, ...]):
  """True where a token and the next are text, [B, L - 1]; NumPy or JAX."""
  is_text_BL = is_text(tokens_BL, special_ids)
  return is_text_BL[:, :-1] & is_text_BL[:, 1:]


def pad_rows(tokens_BL: np.ndarray, rows: int, pad_id: int) -> np.ndarray:
  """Returns the sequences with rows of padding added up to a number of rows."""
  missing = rows - len(tokens_BL)
  return np.pad(tokens_BL, ((0, missing), (0, 0)), constant_values=pad_id)


def _pack(bodies, length, bos_id, pad_id):
  pending = np.empty(0, np.int32)
  for pieces in bodies:
    separator = [bos_id] if len(pending) else []
    for piece in pieces:
      pending = np.concatenate([pending, separator, piece]).astype(np.int32)
      separator = []
      while len(pending) >= length - 1:
        yield _row(pending[: length - 1], length, bos_id, pad_id)
        pending = pending[length - 1 :]
  if len(pending):
    yield _row(pending, length, bos_id, pad_id)


def _bodies(documents, bos_id):
  """Yields the pieces of documents with tokens, without a BOS before them."""
  for document in documents:
    is_cut = isinstance(document, Iterator)
    pieces = _without_bos(document if is_cut else [document], bos_id)
    first = next(pieces, None)
    if first is not None:
      yield itertools.chain([first], pieces)


def _without_bos(pieces, bos_id):
  """Yields the pieces of a document that have tokens."""
  is_start = True
  for piece in pieces:
    # Chat templates and columns of token ids often have one.
    if is_start and len(piece):
      is_start = False
      piece = piece[1:] if piece[0] == bos_id else piece
    if len(piece):
      yield piece


def _beginning(pieces, count):
  """Returns at most the first tokens of a document; asks for no more."""
  found = np.empty(0, np.int32)
  for piece in pieces:
    found = np.concatenate([found, piece])[:count]
    if len(found) == count:
      break
  return found


def _row(body, length, bos_id, pad_id):
  row_L = np.full(length, pad_id, np.int32)
  row_L[0] = bos_id
  row_L[1 : 1 + len(body)] = body
  return row_L


def _check_length(length):
  if length < 2:
    raise errors.InputError(
      f'context_length={length} leaves no room beside BOS; give 2 or more.'
    )
