"""Token ids to rows: nothing lost, nothing invented, BOS where it belongs."""

import itertools

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from jumprelu_jax import errors
from jumprelu_jax.text import packing

BOS, PAD = 2, 0
DOCUMENT = 3  # the first token of each random document, and of nothing else


def rows_of(packing_name, documents, length):
  documents = [np.asarray(document, np.int32) for document in documents]
  pack = packing.PACKINGS[packing_name]
  rows = list(pack(documents, length, bos_id=BOS, pad_id=PAD))
  assert all(row.dtype == np.int32 and row.shape == (length,) for row in rows)
  return [row.tolist() for row in rows]


def random_documents(rng):
  """Returns documents, and what they are given as: some with BOS, or empty."""
  documents = [
    [DOCUMENT, *rng.integers(4, 99, rng.integers(0, 30))]
    for _ in range(rng.integers(1, 20))
  ]
  given = []
  for document in documents:
    given += [[], [BOS]][: rng.integers(0, 3)]
    given.append([BOS, *document] if rng.integers(2) else document)
  return documents, given


@pytest.mark.parametrize(
    ('documents', 'length', 'want'),
    [
        ([[5, 6, 7]], 4, [[2, 5, 6, 7]]),
        ([[5, 6]], 5, [[2, 5, 6, 0, 0]]),
        ([[5], [6]], 4, [[2, 5, 2, 6]]),
        ([[5, 6, 7, 8, 9]], 4, [[2, 5, 6, 7], [2, 8, 9, 0]]),
        ([[5, 6, 7], [8]], 4, [[2, 5, 6, 7], [2, 8, 0, 0]]),
        ([[5, 6], [7, 8, 9]], 4, [[2, 5, 6, 2], [2, 7, 8, 9]]),
        ([[5, 6], [7, 8], [9]], 6, [[2, 5, 6, 2, 7, 8], [2, 9, 0, 0, 0, 0]]),
        ([[2, 5], [2, 6], [7]], 6, [[2, 5, 2, 6, 2, 7]]),
        ([[5, 2, 6]], 4, [[2, 5, 2, 6]]),
        ([[], [5], [], [2], [6]], 4, [[2, 5, 2, 6]]),
        ([[5, 6]], 2, [[2, 5], [2, 6]]),
        ([], 4, []),
        ([[], [2]], 4, []),
    ],
    ids=[
        'exact_fit', 'padding_at_end', 'bos_separates', 'document_spills',
        'row_bos_is_separator', 'separator_ends_row', 'no_bos_twice',
        'bos_of_the_document', 'bos_inside_stays', 'empty_documents',
        'shortest_row', 'none', 'only_empty',
    ],
)  # fmt: skip
def test_pack_by_hand(documents, length, want):
  assert rows_of('pack', documents, length) == want


@pytest.mark.parametrize(
    ('documents', 'length', 'want'),
    [
        ([[5, 6, 7]], 4, [[2, 5, 6, 7]]),
        ([[5], [6]], 4, [[2, 5, 0, 0], [2, 6, 0, 0]]),
        ([[5, 6, 7, 8, 9], [4]], 4, [[2, 5, 6, 7], [2, 4, 0, 0]]),
        ([[2, 5, 6, 7, 8]], 4, [[2, 5, 6, 7]]),
        ([[], [5], [2]], 3, [[2, 5, 0]]),
        ([[2]], 3, []),
    ],
    ids=['exact_fit', 'padding', 'cut', 'bos_of_the_document', 'empty', 'none'],
)  # fmt: skip
def test_one_per_row_by_hand(documents, length, want):
  assert rows_of('document', documents, length) == want


@pytest.mark.parametrize('name', packing.PACKINGS, ids=str)
def test_packing_reads_no_more_documents_than_it_needs(name):
  documents = (np.full(3, i) for i in itertools.count(5))
  pack = packing.PACKINGS[name]
  rows = pack(documents, 4, bos_id=BOS, pad_id=PAD)
  assert next(rows).tolist() == [2, 5, 5, 5]
  assert next(documents).tolist() == [6, 6, 6]


@pytest.mark.parametrize('seed', range(40), ids=str)
def test_pack_keeps_every_token_once_and_in_order(seed):
  rng = np.random.default_rng(seed)
  length = int(rng.integers(2, 12))
  documents, given = random_documents(rng)
  rows = np.asarray(rows_of('pack', given, length))
  body = rows[(rows != BOS) & (rows != PAD)]
  np.testing.assert_array_equal(body, np.concatenate(documents))
  assert (rows[:, 0] == BOS).all()
  before = np.roll(rows, 1, axis=1)
  assert (before[rows == DOCUMENT] == BOS).all()  # BOS separates documents
  # A BOS begins a row or a document; one that ends a row does both.
  starts = np.concatenate([rows, np.full((len(rows), 1), DOCUMENT)], axis=1)
  after = starts[:, 2:][starts[:, 1:-1] == BOS]
  assert (after == DOCUMENT).all()
  assert (rows[:-1] != PAD).all()
  is_pad = rows[-1] == PAD
  assert (is_pad == np.sort(is_pad)).all()  # padding at the end only
  assert (rows[-1] != PAD).sum() > 1  # no row without text


@pytest.mark.parametrize('seed', range(20), ids=str)
def test_one_per_row_gives_the_start_of_every_document(seed):
  rng = np.random.default_rng(seed)
  length = int(rng.integers(2, 12))
  documents, given = random_documents(rng)
  rows = rows_of('document', given, length)
  assert len(rows) == len(documents)
  for row, document in zip(rows, documents):
    padding = [PAD] * (length - 1 - len(document))
    assert row == [BOS, *document[: length - 1], *padding]


@pytest.mark.parametrize('name', packing.PACKINGS, ids=str)
def test_length_must_leave_room_beside_bos(name):
  # Raised by the call, before a row is asked for.
  with pytest.raises(errors.InputError, match='context_length=1 leaves no ro'):
    packing.PACKINGS[name]([], 1, bos_id=BOS, pad_id=PAD)


@pytest.mark.parametrize(
  'array', [np.asarray, jnp.asarray, jax.jit], ids=['numpy', 'jax', 'jit']
)
def test_is_text_is_false_at_special_tokens(array):
  tokens_BL = np.asarray([[2, 5, 1], [4, 0, 3]], np.int32)
  want = [[False, True, False], [True, False, True]]
  if array is jax.jit:
    got = jax.jit(lambda x: packing.is_text(x, (2, 1, 0)))(tokens_BL)
  else:
    got = packing.is_text(array(tokens_BL), (2, 1, 0))
  assert got.dtype == bool
  np.testing.assert_array_equal(got, want)


def test_pad_rows_adds_padding_below():
  got = packing.pad_rows(np.asarray([[2, 5], [2, 6]]), 4, PAD)
  np.testing.assert_array_equal(got, [[2, 5], [2, 6], [0, 0], [0, 0]])
