"""Rows on disk: what is written is read; complete or not there; no memory."""

import errno
import itertools
import os
import socket
import tracemalloc

import numpy as np
import pytest

from jumprelu_jax import errors
from jumprelu_jax.text import sequences


def rows(count, length=3):
  """Yields row i: i, i + 1, …"""
  for i in range(count):
    yield np.arange(i, i + length, dtype=np.int32)


def table(count, length=3):
  return np.arange(count)[:, None] + np.arange(length)


@pytest.mark.parametrize('count', [1, 9, 10, 1001, 123_456], ids=str)
def test_rows_that_are_written_are_read(tmp_path, count):
  path = tmp_path / 'a.npy'
  sequences.write(rows(count), path, max_rows=0)
  got = sequences.open(path)
  np.testing.assert_array_equal(got, table(count))
  assert got.dtype == np.int32
  np.testing.assert_array_equal(np.load(path), got)  # any reader of .npy
  assert os.listdir(tmp_path) == ['a.npy']


def test_rows_are_mapped_read_only(tmp_path):
  sequences.write(rows(5), tmp_path / 'a.npy', max_rows=0)
  got = sequences.open(tmp_path / 'a.npy')
  assert isinstance(got, np.memmap)
  with pytest.raises(ValueError, match='read-only'):
    got[0, 0] = 1


@pytest.mark.parametrize(
  ('max_rows', 'written'), [(1, 1), (4, 4), (5, 5), (6, 5), (0, 5)], ids=str
)
def test_writing_stops_after_max_rows(tmp_path, max_rows, written):
  sequences.write(rows(5), tmp_path / 'a.npy', max_rows=max_rows)
  got = sequences.open(tmp_path / 'a.npy')
  np.testing.assert_array_equal(got, table(written))


def test_no_more_rows_are_asked_for_than_are_written(tmp_path):
  source = rows(10)
  sequences.write(source, tmp_path / 'a.npy', max_rows=4)
  assert next(source)[0] == 4


def test_memory_does_not_grow_with_the_rows(tmp_path):
  # 50,000 rows of 512 bytes are 25.6 MB; the buffer of the file is 1 MiB.
  path = tmp_path / 'a.npy'
  tracemalloc.start()
  try:
    sequences.write(rows(50_000, length=128), path, max_rows=0)
    peak_bytes = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert peak_bytes < 3 << 20
  assert path.stat().st_size == 50_000 * 512 + 128


def test_no_row_is_one_clear_error_and_leaves_the_earlier_file(tmp_path):
  path = tmp_path / 'a.npy'
  sequences.write(rows(5), path, max_rows=0)
  with pytest.raises(errors.InputError, match='no document to pack; give a te'):
    sequences.write(iter(()), path, max_rows=0)
  assert len(sequences.open(path)) == 5
  assert os.listdir(tmp_path) == ['a.npy']


def failing(error):
  yield from rows(20_000)
  raise error


@pytest.mark.parametrize(
  'error', [ValueError('broken text'), KeyboardInterrupt()], ids=repr
)
def test_failure_leaves_the_earlier_file_and_no_partial_one(tmp_path, error):
  path = tmp_path / 'a.npy'
  sequences.write(rows(5), path, max_rows=0)
  with pytest.raises(type(error)):
    sequences.write(failing(error), path, max_rows=0)
  assert len(sequences.open(path)) == 5
  assert os.listdir(tmp_path) == ['a.npy']


def test_file_appears_only_when_it_is_complete(tmp_path):
  path = tmp_path / 'a.npy'
  names = []

  def watched():
    for row in rows(3):
      names.append(os.listdir(tmp_path))
      yield row

  sequences.write(watched(), path, max_rows=0)
  # It tells hosts apart, which may write the same file at once.
  partial = f'a.npy.{socket.gethostname()}-{os.getpid()}.partial'
  assert names == [[], [partial], [partial]]


def test_full_disk_is_one_clear_error(tmp_path):
  path = tmp_path / 'a.npy'
  # What is written to this device finds no space.
  partial = f'a.npy.{socket.gethostname()}-{os.getpid()}.partial'
  (tmp_path / partial).symlink_to('/dev/full')
  # The file's buffer of 1 MiB overflows after about 87,000 rows of 12 bytes.
  match = (
    r'about 1,04\d,\d\d\d bytes \(87,\d\d\d seq.*make space, or take fewer'
  )
  with pytest.raises(errors.InputError, match=match) as caught:
    sequences.write(rows(200_000), path, max_rows=0)
  assert str(path) in str(caught.value)
  assert os.listdir(tmp_path) == []


def test_disk_that_is_full_at_the_end_is_one_clear_error(tmp_path, monkeypatch):
  def full(_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  match = r'120,000 bytes \(10,000 sequences\); make space'
  with pytest.raises(errors.InputError, match=match):
    sequences.write(rows(10_000), tmp_path / 'a.npy', max_rows=0)
  assert os.listdir(tmp_path) == []


def test_other_errors_of_the_disk_stay_what_they_are(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(NotADirectoryError):
    sequences.write(rows(3), tmp_path / 'file' / 'no' / 'a.npy', max_rows=0)


@pytest.fixture
def clock(monkeypatch):
  """A clock that moves on by one second whenever it is read."""
  seconds = itertools.count()
  monkeypatch.setattr(sequences.time, 'monotonic', lambda: next(seconds))


def test_long_work_says_how_far_it_is(tmp_path, capsys, clock):
  sequences.write(rows(25), tmp_path / 'a.npy', max_rows=0)
  assert capsys.readouterr().err.splitlines() == [
    'packing text: 10 sequences, 1 sequences/s',
    'packing text: 20 sequences, 1 sequences/s',
  ]


def test_short_work_says_nothing(tmp_path, capsys):
  sequences.write(rows(25), tmp_path / 'a.npy', max_rows=0)
  assert capsys.readouterr() == ('', '')


def damage(path, how):
  data = path.read_bytes()
  if how == 'missing':
    path.unlink()
  elif how == 'cut':
    path.write_bytes(data[:-1])
  elif how == 'cut_header':
    path.write_bytes(data[:50])
  elif how == 'empty':
    path.write_bytes(b'')
  elif how == 'longer':
    path.write_bytes(data + b'more')
  elif how == 'other_file':
    path.write_bytes(b'{"text": "a"}\n' * 100)
  elif how == 'no_rows':
    np.save(path, np.zeros((0, 4), np.int32))
  elif how == 'int64':
    np.save(path, np.zeros((3, 4), np.int64))
  elif how == 'rank_1':
    np.save(path, np.zeros(12, np.int32))
  elif how == 'objects':
    np.save(path, np.asarray([{}]), allow_pickle=True)
  elif how == 'npz':
    with path.open('wb') as file:
      np.savez(file, a=np.zeros((3, 4), np.int32))


@pytest.mark.parametrize(
  ('how', 'match'),
  [
    ('missing', 'does not exist; make it anew'),
    ('cut', 'damaged or no .npy file .*; remove it and make it anew'),
    ('cut_header', 'damaged or no .npy file'),
    ('empty', 'damaged or no .npy file'),
    ('longer', 'longer than its header says; remove it and make it anew'),
    ('other_file', 'damaged or no .npy file'),
    ('no_rows', r'of shape \(0, 4\); expected int32 of rank 2 with rows'),
    ('int64', r'holds int64 of shape \(3, 4\); expected int32 of rank 2'),
    ('rank_1', r'holds int32 of shape \(12,\); expected int32 of rank 2'),
    ('objects', 'damaged or no .npy file'),
    ('npz', 'damaged or no .npy file'),
  ],
  ids=str,
)
def test_unusable_file_is_one_clear_error(tmp_path, how, match):
  path = tmp_path / 'a.npy'
  sequences.write(rows(50), path, max_rows=0)
  damage(path, how)
  with pytest.raises(errors.InputError, match=match) as caught:
    sequences.open(path)
  assert str(path) in str(caught.value)
