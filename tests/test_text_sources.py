"""Sources of text: every format of files, clear errors."""

import bz2
import gzip
import importlib.util
import itertools
import json
import lzma
import socket

import datasets
import pyarrow
from pyarrow import parquet
import pytest

from jumprelu_jax import errors
from jumprelu_jax.text import sources

COMPRESS = {
  '': bytes,
  '.gz': gzip.compress,
  '.xz': lzma.compress,
  '.bz2': bz2.compress,
}
CHAT = [
  {'role': 'user', 'content': 'How are you?'},
  {'role': 'assistant', 'content': 'naïve ☕'},
]
ROWS = [
  {'text': 'A cat.\nIt sleeps.', 'ids': [7, 8, 9], 'chat': CHAT, 'n': 1},
  {'text': 'naïve café ☕', 'ids': [0], 'chat': CHAT[:1], 'n': 2},
]
OF_COLUMN = {c: [row[c] for row in ROWS] for c in ('text', 'ids', 'chat')}


def read(path, **values):
  return list(sources.read(sources.Source(str(path), **values)))


def json_lines(rows):
  return ''.join(json.dumps(row) + '\n' for row in rows).encode()


def write_jsonl(path, rows, compress=bytes):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(compress(json_lines(rows)))
  return path


def write_arrow(path, table):
  with pyarrow.ipc.new_stream(path, table.schema) as writer:
    writer.write_table(table)


def write_rows(folder, form):
  """Writes ROWS in a form of disk; returns the path."""
  table = pyarrow.Table.from_pylist(ROWS)
  path = folder / f'rows.{form}'
  if form == 'jsonl':
    write_jsonl(path, ROWS)
  elif form == 'json':
    path.write_text(json.dumps(ROWS, indent=1))
  elif form == 'parquet':
    parquet.write_table(table, path)
  elif form == 'arrow':
    write_arrow(path, table)
  elif form == 'saved':
    datasets.Dataset.from_list(ROWS).save_to_disk(path)
  elif form == 'saved_as_arrays':
    saved = datasets.Dataset.from_list(ROWS)
    saved.with_format('numpy').save_to_disk(path)
  elif form == 'saved_dict':
    splits = {
      'train': datasets.Dataset.from_list(ROWS),
      'test': datasets.Dataset.from_list([{'text': 'of the test'}]),
    }
    datasets.DatasetDict(splits).save_to_disk(path)
  return path


def test_local_files_are_read_without_the_network(tmp_path, monkeypatch):
  asked = []

  def refuse(host, *_, **__):
    asked.append(host)
    raise OSError('no network')

  monkeypatch.setattr(socket, 'getaddrinfo', refuse)
  monkeypatch.setattr(datasets.config, 'HF_UPDATE_DOWNLOAD_COUNTS', True)
  for form in ('jsonl', 'json', 'parquet'):
    assert read(write_rows(tmp_path, form))
  assert asked == []


@pytest.mark.parametrize('column', OF_COLUMN, ids=str)
@pytest.mark.parametrize(
  'form',
  ['jsonl', 'json', 'parquet', 'arrow', 'saved', 'saved_as_arrays'],
  ids=str,
)
def test_every_format_gives_every_kind_of_document(tmp_path, form, column):
  path = write_rows(tmp_path, form)
  assert read(path, column=column) == OF_COLUMN[column]


@pytest.mark.parametrize('ending', COMPRESS, ids=str)
def test_documents_are_read_in_order_without_blank_ones(tmp_path, ending):
  documents = ['A cat.\nIt sleeps.', 'naïve café ☕', '  \n', '', 'last']
  path = write_jsonl(
    tmp_path / f'a.jsonl{ending}',
    [{'text': document, 'source': 'x'} for document in documents],
    COMPRESS[ending],
  )
  assert read(path) == [*documents[:2], 'last']


def test_zstandard_is_read_where_it_is_installed_and_explained_where_not(
  tmp_path,
):
  path = tmp_path / 'a.jsonl.zst'
  if importlib.util.find_spec('zstandard'):
    zstandard = importlib.import_module('zstandard')
    path.write_bytes(zstandard.compress(json_lines(ROWS)))
    assert read(path) == OF_COLUMN['text']
  else:
    path.write_bytes(bytes.fromhex('28b52ffd') + b'some')
    with pytest.raises(errors.InputError, match='pip install zstandard'):
      read(path)


@pytest.mark.parametrize('ending', COMPRESS, ids=str)
def test_text_file_is_one_document(tmp_path, ending):
  content = 'Chapter 1\n\nCall me Ishmael.\n\n\nÉtienne ☕'
  path = tmp_path / f'book.txt{ending}'
  path.write_bytes(COMPRESS[ending](content.encode()))
  assert read(path) == [content]


def test_empty_token_lists_and_conversations_are_left_out(tmp_path):
  rows = [{'ids': ids} for ids in ([], [4, 5], [], [6])]
  assert read(write_jsonl(tmp_path / 'a.jsonl', rows), column='ids') == [
    [4, 5],
    [6],
  ]


def test_long_files_are_read_to_the_end(tmp_path):
  documents = [f'document {i}' for i in range(3000)]
  path = write_jsonl(tmp_path / 'a.jsonl', [{'text': d} for d in documents])
  assert read(path) == documents


def test_files_are_read_lazily(tmp_path):
  # Two chunks of 10 MiB: the second, which is broken, is not reached.
  rows = [{'text': f'{i} ' + 'x' * 100_000} for i in range(120)]
  path = tmp_path / 'a.jsonl'
  path.write_bytes(json_lines(rows) + b'{"text": "cut')
  documents = sources.read(sources.Source(str(path)))
  first = list(itertools.islice(documents, 50))
  assert first == [row['text'] for row in rows[:50]]
  with pytest.raises(errors.InputError, match='cannot be read'):
    list(documents)


@pytest.mark.parametrize('pattern', ['', '/*.jsonl', '/**/*.jsonl'], ids=str)
def test_folder_and_pattern_are_read_by_name(tmp_path, pattern):
  folder = tmp_path / '.cache' / 'corpus'  # hidden above, as the hub's cache is
  write_jsonl(folder / 'b.jsonl', [{'text': 'b'}])
  write_jsonl(folder / 'a.jsonl', [{'text': 'a'}])
  write_jsonl(folder / 'more' / 'c.jsonl', [{'text': 'c'}])
  write_jsonl(folder / '.hidden.jsonl', [{'text': 'hidden'}])
  (folder / 'README.md').write_text('A card.')
  want = ['a', 'b'] if pattern == '/*.jsonl' else ['a', 'b', 'c']
  assert read(f'{folder}{pattern}') == want


def test_folder_of_text_files_gives_a_document_a_file(tmp_path):
  (tmp_path / '2.txt').write_text('two')
  (tmp_path / '1.txt').write_text('one\n\nmore')
  assert read(tmp_path) == ['one\n\nmore', 'two']


@pytest.mark.parametrize(
  'name', ['a[1] b.jsonl', '[x]/a.jsonl', 'ünï.JSONL', "q'uote.jsonl"], ids=str
)
def test_names_with_odd_characters_are_names(tmp_path, name):
  path = write_jsonl(tmp_path / name, [{'text': 'found'}])
  assert read(path) == ['found']
  assert read(path.parent) == ['found']


def test_split_of_a_saved_dict_is_chosen(tmp_path):
  path = write_rows(tmp_path, 'saved_dict')
  assert read(path) == OF_COLUMN['text']
  assert read(path, split='test') == ['of the test']
  with pytest.raises(errors.InputError, match='split= one of test, train'):
    read(path, split='validation')


@pytest.mark.parametrize('form', ['jsonl', 'saved'], ids=str)
def test_split_of_what_has_none_is_refused(tmp_path, form):
  path = write_rows(tmp_path, form)
  with pytest.raises(errors.InputError, match='have no splits; leave it out'):
    read(path, split='test')


@pytest.mark.parametrize('name', ['nothing.jsonl', 'no/*.parquet'], ids=str)
def test_missing_text_is_one_clear_error(tmp_path, name):
  # Raised by the call, before a document is asked for.
  with pytest.raises(errors.InputError, match='exist; give a .jsonl file'):
    sources.read(sources.Source(str(tmp_path / name)))


@pytest.mark.parametrize(
    ('data', 'match'),
    [
        (b'', 'is empty; give one with documents'),
        (b'Call me Ishmael.\n', 'cannot be read as its name says'),
        (b'{"body": "a"}\n', "nothing in column 'text' .*body.*choose the col"),
        (b'{"text": 3}\n', "a value of type int in column 'text'"),
        (b'{"text": true}\n', 'a value of type bool'),
        (b'{"text": {"en": "a"}}\n', r"a dict of \['en'\] in column"),
        (b'{"text": ["a", "b"]}\n', 'a list of str in column'),
        (b'{"text": [1, 2.5]}\n', 'a list of float in column'),
        (b'{"text": [1, null]}\n', 'a list of NoneType and int in column'),
        (b'{"text": [true]}\n', 'a list of bool in column'),
        (b'{"text": [{"from": "a"}]}\n', r"a list with a dict of \['from'\]"),
        (b'{"text": " "}\n{"text": ""}\n', 'no text; give one with documents'),
        (b'\n\n', 'give one with documents|cannot be read'),
    ],
    ids=[
        'empty', 'not_json', 'no_text_key', 'number', 'bool', 'dict', 'strings',
        'floats', 'hole', 'bools', 'sharegpt', 'only_blank', 'only_newlines',
    ],
)  # fmt: skip
def test_unusable_text_fails_when_it_is_opened(tmp_path, data, match):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(data)
  with pytest.raises(errors.InputError, match=match) as caught:
    sources.read(sources.Source(str(path)))
  assert str(path) in str(caught.value)


@pytest.mark.parametrize(
  ('data', 'match'),
  [
    (b'{"text": "a"}\n{"text": "b', 'cannot be read as its name says'),
    (b'{"text": ["a"]}\n', 'a list of str in column'),
  ],
  ids=['cut', 'strings'],
)
def test_unusable_later_row_is_one_clear_error(tmp_path, data, match):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(data)
  with pytest.raises(errors.InputError, match=match):
    read(path)


def write_with_holes(path, column):
  """Rows of which three have nothing, and one lacks the column."""
  good = {'text': 'a', 'ids': [1], 'chat': CHAT}[column]
  empty = {'text': ' \n', 'ids': [], 'chat': []}[column]
  values = [None, good, None, good, empty]
  if path.suffix == '.jsonl':
    lines = [{column: value, 'n': 1} for value in values] + [{'n': 2}]
    write_jsonl(path, lines)
  else:
    table = pyarrow.Table.from_pylist([{column: v} for v in [*values, None]])
    parquet.write_table(table, path)
  return [good, good]


@pytest.mark.parametrize('ending', ['jsonl', 'parquet'], ids=str)
@pytest.mark.parametrize('column', OF_COLUMN, ids=str)
def test_rows_without_text_are_left_out_and_counted(
  tmp_path, capsys, ending, column
):
  path = tmp_path / f'a.{ending}'
  want = write_with_holes(path, column)
  capsys.readouterr()
  assert read(path, column=column) == want
  assert capsys.readouterr().err == (
    f"text {path}: 4 of 6 rows have nothing in column '{column}' and are left "
    'out\n'
  )


def test_rows_without_text_are_said_once(tmp_path, capsys):
  path = tmp_path / 'a.jsonl'
  write_with_holes(path, 'text')
  sources.check(sources.Source(str(path)))
  assert capsys.readouterr().err == ''
  documents = sources.read(sources.Source(str(path)))
  assert list(itertools.islice(documents, 1)) == ['a']
  del documents
  assert '1 of 2 rows have nothing' in capsys.readouterr().err


def test_column_of_nothing_has_no_text(tmp_path):
  path = write_jsonl(tmp_path / 'a.jsonl', [{'text': None}] * 3)
  with pytest.raises(errors.InputError, match='no text; give one with docu'):
    read(path)


@pytest.mark.parametrize('ending', COMPRESS, ids=str)
def test_long_text_file_comes_in_parts(tmp_path, monkeypatch, ending):
  monkeypatch.setattr(sources, '_CHARACTERS', 7)
  text = 'naïve café ☕\r\nand\n\nmore ' * 9
  path = tmp_path / f'a.txt{ending}'
  path.write_bytes(COMPRESS[ending](text.encode()))
  (document,) = read(path)
  parts = list(document)
  assert max(map(len, parts)) == 7
  assert ''.join(parts) == text.replace('\r\n', '\n')


def test_long_text_file_is_not_read_further_than_asked_for(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_bytes(b'a' * (1 << 22) + b'\xff')
  (document,) = read(path)
  assert next(document) == 'a' * (1 << 18)
  with pytest.raises(errors.InputError, match='cannot be read as its name say'):
    list(document)


@pytest.mark.parametrize('ending', ['.gz', '.xz', '.bz2'], ids=str)
def test_truncated_compressed_text_is_one_clear_error(tmp_path, ending):
  rows = [{'text': f'document {i * i}'} for i in range(500)]
  path = write_jsonl(tmp_path / f'a.jsonl{ending}', rows, COMPRESS[ending])
  path.write_bytes(path.read_bytes()[:-200])
  with pytest.raises(errors.InputError, match='cannot be read'):
    read(path)


@pytest.mark.parametrize('form', ['parquet', 'arrow'], ids=str)
def test_truncated_table_is_one_clear_error(tmp_path, form):
  path = write_rows(tmp_path, form)
  path.write_bytes(path.read_bytes()[:-60])
  with pytest.raises(errors.InputError, match='cannot be read'):
    read(path)


def test_damaged_saved_dataset_is_one_clear_error(tmp_path):
  path = write_rows(tmp_path, 'saved')
  (path / 'state.json').write_text('{}')
  with pytest.raises(errors.InputError, match='cannot be read'):
    read(path)


def test_saved_dataset_of_blank_texts_has_no_text(tmp_path):
  saved = datasets.Dataset.from_dict({'text': ['', ' ']})
  saved.save_to_disk(tmp_path / 'saved')
  with pytest.raises(errors.InputError, match='no text; give one with docu'):
    read(tmp_path / 'saved')


def test_empty_file_among_others_is_one_clear_error(tmp_path):
  write_jsonl(tmp_path / 'a.jsonl', ROWS)
  (tmp_path / 'b.jsonl').touch()
  with pytest.raises(errors.InputError, match='b.jsonl is empty; give'):
    read(tmp_path)


def test_column_that_only_a_later_file_lacks_is_one_clear_error(tmp_path):
  write_jsonl(tmp_path / 'a.jsonl', [{'text': 'a'}])
  write_jsonl(tmp_path / 'b.jsonl', [{'body': 'b'}])
  with pytest.raises(errors.InputError, match='cannot be .* body'):
    read(tmp_path)


def test_folder_without_text_is_one_clear_error(tmp_path):
  (tmp_path / 'README.md').write_text('A card.')
  with pytest.raises(errors.InputError, match='holds no text; give a .jsonl'):
    read(tmp_path)


def test_folder_of_two_formats_is_one_clear_error(tmp_path):
  write_rows(tmp_path, 'jsonl')
  write_rows(tmp_path, 'parquet')
  match = r'several formats \(json, parquet\); give a pattern'
  with pytest.raises(errors.InputError, match=match):
    read(tmp_path)
  assert read(tmp_path / '*.parquet') == OF_COLUMN['text']


@pytest.mark.parametrize('name', ['a', 'a.csv', 'a.gz', 'a.parquet.gz'])
def test_unknown_suffix_is_one_clear_error(tmp_path, name):
  write_jsonl(tmp_path / name, ROWS)
  match = r'give files that end in .jsonl, .json, .txt, .parquet, .arrow \('
  with pytest.raises(errors.InputError, match=match):
    read(tmp_path / name)
