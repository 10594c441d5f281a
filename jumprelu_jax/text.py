"""Text: documents → tokens → packed sequences.

Every packed row has the same length and starts with BOS; BOS also separates
the documents that share a row. No row holds padding but, possibly, the last.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
import os

import numpy as np
import tokenizers

from jumprelu_jax import errors

# A document is encoded in a batch of this many: enough to keep the tokenizer's
# threads busy, little enough that memory does not grow with the corpus.
_DOCUMENTS_PER_BATCH = 64


def read_documents(path: str | os.PathLike) -> Iterator[str]:
  """Yields the non-empty documents of a JSON-lines file, in its order.

  Args:
    path: a `.jsonl` file, plain or compressed (`.gz`, `.xz`, …), with one
      object a line that has a string under "text".

  Raises:
    errors.InputError: the file is missing, is not of that form, or holds no
      text.
  """
  import datasets  # 1.3 s to import; only those who read text pay for it

  if not os.path.isfile(path):
    raise errors.InputError(
      f'text file {path} does not exist; give a .jsonl file.'
    )
  if os.path.getsize(path) == 0:
    raise errors.InputError(
      f'text file {path} is empty; give one with documents.'
    )
  found_text = False
  try:
    rows = datasets.load_dataset(
      'json', data_files=[str(path)], split='train', streaming=True
    )
    for row in rows:
      text = row.get('text')
      if not isinstance(text, str):
        raise TypeError(f'a row has keys {sorted(row)}')
      if text.strip():
        found_text = True
        yield text
  except Exception as error:
    raise errors.InputError(
      f'text file {path} cannot be read as JSON lines with a string under '
      f'"text" ({type(error).__name__}: {error}).'
    ) from error
  if not found_text:
    raise errors.InputError(
      f'text file {path} has no text; give one with documents.'
    )


def encode(
  documents: Iterable[str], tokenizer: tokenizers.Tokenizer
) -> Iterator[np.ndarray]:
  """Yields each document's token ids (int32, no special tokens added)."""
  batch = []

  def flush():
    for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
      yield np.asarray(encoding.ids, np.int32)
    batch.clear()

  for document in documents:
    batch.append(document)
    if len(batch) == _DOCUMENTS_PER_BATCH:
      yield from flush()
  yield from flush()


def pack(
  documents: Iterable[np.ndarray],
  length: int,
  *,
  bos_id: int,
  pad_id: int,
  max_rows: int | None = None,
) -> np.ndarray:
  """Packs documents into rows of one length, separated by BOS.

  Args:
    documents: token ids of each document, without special tokens.
    length: positions in a row, BOS included.
    bos_id: id that starts every row and separates documents.
    pad_id: id that fills the last row up.
    max_rows: stop after this many rows; None packs everything.

  Returns:
    int32 array [N, L].

  Raises:
    errors.InputError: length < 2, or there is no document.
  """
  if length < 2:
    raise errors.InputError(
      f'context_length={length} leaves no room beside BOS.'
    )
  rows, pending = [], np.empty(0, np.int32)

  def row(body):
    padding = np.full(length - 1 - len(body), pad_id, np.int32)
    return np.concatenate([np.asarray([bos_id], np.int32), body, padding])

  for document in documents:
    separator = [bos_id] if len(pending) else []
    pending = np.concatenate([pending, separator, document]).astype(np.int32)
    while len(pending) >= length - 1:
      rows.append(row(pending[: length - 1]))
      pending = pending[length - 1 :]
      if len(rows) == max_rows:
        return np.stack(rows)
  if len(pending):
    rows.append(row(pending))
  if not rows:
    raise errors.InputError(
      'There is no document to pack; give a text with some.'
    )
  return np.stack(rows)


def is_text(tokens_BL, special_ids: tuple[int, ...]):
  """True where a token is no special token (BOS, EOS, PAD); NumPy or JAX."""
  result_BL = tokens_BL == tokens_BL
  for special_id in special_ids:
    result_BL &= tokens_BL != special_id
  return result_BL


def pad_rows(tokens_BL: np.ndarray, rows: int, pad_id: int) -> np.ndarray:
  """Returns the sequences with rows of padding added up to a number of rows."""
  missing = rows - len(tokens_BL)
  return np.pad(tokens_BL, ((0, missing), (0, 0)), constant_values=pad_id)
