"""The scripts that made the embedded text and language model."""

import functools
import importlib
import time

from absl import flags
import numpy as np
import pytest

from jumprelu_jax.text import sources


def import_script(name):
  """Imports a script, its flags kept apart: scripts share flags' names."""
  apart = flags.FlagValues()
  with pytest.MonkeyPatch.context() as patch:
    for kind in ('string', 'integer', 'float', 'list'):
      define = getattr(flags, f'DEFINE_{kind}')
      define = functools.partial(define, flag_values=apart)
      patch.setattr(flags, f'DEFINE_{kind}', define)
    return importlib.import_module(f'experiments.embedded.{name}')


split_text = import_script('split_text')
train_lm = import_script('train_lm')


@pytest.mark.parametrize('count', [50, 1000, 1024], ids=str)
def test_split_holds_out_exactly_one_in_fifty(count):
  documents = list(range(count))
  train, heldout = split_text.split(documents)
  for start in range(0, count - 49, 50):
    assert sum(start <= i < start + 50 for i in heldout) == 1
  assert sorted(train + heldout) == documents  # disjoint and complete
  assert train == sorted(train)


def test_split_holds_the_same_documents_out_of_a_longer_source():
  _, heldout = split_text.split(list(range(500)))
  _, longer = split_text.split(list(range(900)))
  assert longer[: len(heldout)] == heldout


def test_interleave_keeps_each_lists_order():
  lists = [[(k, i) for i in range(n)] for k, n in enumerate((7, 0, 40, 23))]
  dealt = split_text.interleave(lists)
  assert len(dealt) == 70
  for k, items in enumerate(lists):
    assert [item for item in dealt if item[0] == k] == items


def test_any_prefix_of_interleave_mixes_evenly():
  sizes = (5, 40, 200)
  dealt = split_text.interleave([[k] * n for k, n in enumerate(sizes)])
  for end in range(1, len(dealt) + 1):
    for k, n in enumerate(sizes):
      proportion = end * n / sum(sizes)
      # Half an item for each list that may be early or late, and its own half.
      assert abs(dealt[:end].count(k) - proportion) <= 2


@pytest.mark.parametrize('ending', ['gz', 'xz'], ids=str)
def test_write_gives_the_same_bytes_at_any_time(tmp_path, monkeypatch, ending):
  documents = [{'text': f'café {i}'} for i in range(20)]
  blobs = []
  for now in (1e9, 1.5e9):
    monkeypatch.setattr(time, 'time', lambda now=now: now)
    path = tmp_path / str(now) / f'a.jsonl.{ending}'
    split_text.write(str(path), documents)
    blobs.append(path.read_bytes())
  assert blobs[0] == blobs[1]


@pytest.mark.parametrize('ending', ['gz', 'xz'], ids=str)
def test_written_documents_are_read_back(tmp_path, ending):
  documents = ['naïve café ☕', 'two\nlines']
  path = tmp_path / f'a.jsonl.{ending}'
  split_text.write(str(path), [{'text': d} for d in documents])
  assert list(sources.read(sources.Source(str(path)))) == documents


def test_an_epoch_visits_every_row_once():
  for epoch in range(3):
    steps = range(6 * epoch, 6 * (epoch + 1))
    rows = [train_lm.rows_of_step(step, 24, 4, seed=0) for step in steps]
    assert {len(r) for r in rows} == {4}
    assert sorted(np.concatenate(rows)) == list(range(24))


def test_an_epoch_visits_no_row_twice_when_rows_are_left_over():
  rows = [train_lm.rows_of_step(step, 27, 4, seed=0) for step in range(6)]
  assert len(set(np.concatenate(rows))) == 24


def test_rows_are_a_function_of_seed_and_step():
  def rows(step, seed):
    return train_lm.rows_of_step(step, 400, 40, seed).tolist()

  want = {(step, seed): rows(step, seed) for seed in (0, 1) for step in (3, 17)}
  np.random.seed(5)  # draws nothing from NumPy's global state
  again = {key: rows(*key) for key in reversed(want)}  # nor from earlier steps
  assert again == want
  assert want[3, 0] != want[3, 1]
  assert rows(3, 0) != rows(13, 0)  # the same place in the next epoch


def test_tokenizer_loses_no_text_and_splits_digits():
  tokenizer = train_lm.train_tokenizer(['the cat sat on the mat in 1984'] * 5)
  assert [tokenizer.token_to_id(t) for t in ('<pad>', '<eos>', '<bos>')] == [
    train_lm.ARCHITECTURE.pad_id,
    train_lm.ARCHITECTURE.special_ids[1],
    train_lm.ARCHITECTURE.bos_id,
  ]
  unseen = 'Ünseen: 1984\t☕\n'
  encoding = tokenizer.encode(unseen)
  assert encoding.ids[0] == train_lm.ARCHITECTURE.bos_id
  assert tokenizer.decode(encoding.ids) == unseen
  assert {'1', '9', '8', '4'} <= set(encoding.tokens)
