"""Text: reading documents, encoding them, packing them into rows."""

import gzip
import json
import lzma

import jax
from jax import numpy as jnp
import numpy as np
import pytest
import tokenizers

from jumprelu_jax import text

BOS, PAD = 2, 0
COMPRESS = {'': bytes, '.gz': gzip.compress, '.xz': lzma.compress}


def write_jsonl(path, rows, compress=bytes):
  data = ''.join(json.dumps(row) + '\n' for row in rows)
  path.write_bytes(compress(data.encode()))
  return path


def pack(documents, length, **kwargs):
  documents = [np.asarray(document, np.int32) for document in documents]
  return text.pack(documents, length, bos_id=BOS, pad_id=PAD, **kwargs)


@pytest.mark.parametrize('ending', COMPRESS, ids=['plain', 'gz', 'xz'])
def test_documents_are_read_in_order_without_blank_ones(tmp_path, ending):
  documents = ['A cat.\nIt sleeps.', 'naïve café ☕', '  \n', '', 'last']
  path = write_jsonl(
    tmp_path / f'a.jsonl{ending}',
    [{'text': document, 'source': 'x'} for document in documents],
    COMPRESS[ending],
  )
  assert list(text.read_documents(path)) == [*documents[:2], 'last']


def test_long_files_are_read_to_the_end(tmp_path):
  documents = [f'document {i}' for i in range(3000)]
  path = write_jsonl(tmp_path / 'a.jsonl', [{'text': d} for d in documents])
  assert list(text.read_documents(path)) == documents


def test_missing_text_file_is_one_clear_error(tmp_path):
  with pytest.raises(ValueError, match='does not exist; give a .jsonl file'):
    list(text.read_documents(tmp_path / 'nothing.jsonl'))


@pytest.mark.parametrize(
    ('data', 'match'),
    [
        (b'', 'is empty; give one with documents'),
        (b'Call me Ishmael.\n', 'cannot be read as JSON lines with a string'),
        (b'{"body": "a"}\n', 'with a string under "text".*body'),
        (b'{"text": 3}\n', 'with a string under "text"'),
        (b'{"text": "a"}\n{"body": "b"}\n', 'with a string under "text"'),
        (b'{"text": "a"}\n{"text": "b', 'with a string under "text"'),
        (b'{"text": " "}\n{"text": ""}\n', 'no text; give one with documents'),
        (b'\n\n', 'give one with documents|with a string under "text"'),
    ],
    ids=[
        'empty', 'not_json', 'no_text_key', 'number', 'later_row_lacks_text',
        'cut', 'only_blank_texts', 'only_newlines',
    ],
)  # fmt: skip
def test_unusable_text_file_is_one_clear_error(tmp_path, data, match):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(data)
  with pytest.raises(ValueError, match=match):
    list(text.read_documents(path))


@pytest.mark.parametrize('ending', ['.gz', '.xz'], ids=str)
def test_truncated_compressed_text_is_one_clear_error(tmp_path, ending):
  rows = [{'text': f'document {i * i}'} for i in range(500)]
  path = write_jsonl(tmp_path / f'a.jsonl{ending}', rows, COMPRESS[ending])
  path.write_bytes(path.read_bytes()[:-200])
  with pytest.raises(ValueError, match='cannot be read as JSON lines'):
    list(text.read_documents(path))


@pytest.mark.parametrize('count', [0, 1, 63, 64, 65, 130], ids=str)
def test_encode_gives_every_document_in_order_without_specials(count):
  vocab = {'<pad>': 0, '<eos>': 1, '<bos>': 2}
  vocab |= {str(i): 3 + i for i in range(130)}
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(vocab, unk_token='<pad>')
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single='<bos> $A', special_tokens=[('<bos>', 2)]
  )
  encoded = list(text.encode((f'{i} 0' for i in range(count)), tokenizer))
  assert [ids.tolist() for ids in encoded] == [[3 + i, 3] for i in range(count)]
  assert all(ids.dtype == np.int32 for ids in encoded)


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
    ],
    ids=[
        'exact_fit', 'padding_at_end', 'bos_separates', 'document_spills',
        'row_bos_is_separator', 'separator_ends_row', 'no_bos_twice',
    ],
)  # fmt: skip
def test_pack_by_hand(documents, length, want):
  got = pack(documents, length)
  np.testing.assert_array_equal(got, want)
  assert got.dtype == np.int32


@pytest.mark.parametrize(
  ('max_rows', 'rows'), [(1, 1), (2, 2), (3, 3), (9, 3), (None, 3)], ids=str
)
def test_pack_stops_after_max_rows(max_rows, rows):
  want = [[2, 5, 6, 7], [2, 8, 9, 2], [2, 4, 0, 0]]
  got = pack([[5, 6, 7, 8, 9], [4]], 4, max_rows=max_rows)
  np.testing.assert_array_equal(got, want[:rows])


def test_pack_reads_no_more_documents_than_it_needs():
  def documents():
    yield np.arange(5, 8)
    raise AssertionError('read on')

  pack_args = {'bos_id': BOS, 'pad_id': PAD, 'max_rows': 1}
  assert len(text.pack(documents(), 4, **pack_args)) == 1


@pytest.mark.parametrize('seed', range(8), ids=str)
def test_pack_keeps_every_token_once_and_in_order(seed):
  rng = np.random.default_rng(seed)
  length = int(rng.integers(2, 12))
  # Every document starts with a 3 and holds no other.
  documents = [
    np.asarray([3, *rng.integers(4, 99, rng.integers(0, 30))], np.int32)
    for _ in range(rng.integers(1, 20))
  ]
  rows = pack(documents, length)
  body = rows[(rows != BOS) & (rows != PAD)]
  np.testing.assert_array_equal(body, np.concatenate(documents))
  assert rows.shape[1] == length
  assert (rows[:, 0] == BOS).all()
  before = np.roll(rows, 1, axis=1)
  assert (before[rows == 3] == BOS).all()  # BOS separates documents
  assert (rows[:-1] != PAD).all()
  is_pad = rows[-1] == PAD
  assert (is_pad == np.sort(is_pad)).all()  # padding at the end only
  assert (rows[-1] != PAD).sum() > 1  # no row without text


@pytest.mark.parametrize('documents', [[], [[]]], ids=['none', 'empty'])
def test_packing_nothing_is_one_clear_error(documents):
  with pytest.raises(ValueError, match='no document to pack; give a text'):
    pack(documents, 4)


def test_pack_length_must_leave_room_beside_bos():
  with pytest.raises(ValueError, match='context_length=1 leaves no room'):
    pack([[5]], 1)


@pytest.mark.parametrize('array', [np.asarray, jnp.asarray, jax.jit], ids=str)
def test_is_text_is_false_at_special_tokens(array):
  tokens_BL = np.asarray([[2, 5, 1], [4, 0, 3]], np.int32)
  want = [[False, True, False], [True, False, True]]
  if array is jax.jit:
    got = jax.jit(lambda x: text.is_text(x, (2, 1, 0)))(tokens_BL)
  else:
    got = text.is_text(array(tokens_BL), (2, 1, 0))
  assert got.dtype == bool
  np.testing.assert_array_equal(got, want)


def test_pad_rows_adds_padding_below():
  got = text.pad_rows(np.asarray([[2, 5], [2, 6]]), 4, PAD)
  np.testing.assert_array_equal(got, [[2, 5], [2, 6], [0, 0], [0, 0]])
