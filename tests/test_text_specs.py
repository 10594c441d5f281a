"""Sources of text: what a spec says; datasets of the hub."""

import dataclasses
import itertools

import datasets
import pytest

from jumprelu_jax import errors
from jumprelu_jax.text import sources

ROWS = [{'text': 'A cat.', 'ids': [7, 8, 9]}, {'text': 'naïve', 'ids': [0]}]


def read(path):
  return list(sources.read(sources.Source(path)))


@pytest.mark.parametrize(
    ('spec', 'want'),
    [
        ('a.jsonl', [('a.jsonl', 'text', 1.0, 'train', '', '')]),
        (
            'a.jsonl.gz?weight=2, b/*.parquet?column=body',
            [
                ('a.jsonl.gz', 'text', 2.0, 'train', '', ''),
                ('b/*.parquet', 'body', 1.0, 'train', '', ''),
            ],
        ),
        (
            'hf://datasets/an-owner/a.name_1?split=test&name=en&weight=.5'
            '&revision=refs%2Fconvert%2Fparquet&column=the+text',
            [(
                'hf://datasets/an-owner/a.name_1', 'the text', 0.5, 'test',
                'en', 'refs/convert/parquet',
            )],
        ),
        ('100%25.txt', [('100%25.txt', 'text', 1.0, 'train', '', '')]),
    ],
    ids=['plain', 'two', 'hub', 'paths_are_not_decoded'],
)  # fmt: skip
def test_spec_gives_sources(spec, want):
  assert [dataclasses.astuple(s) for s in sources.parse(spec)] == want


@pytest.mark.parametrize(
  ('spec', 'match'),
  [
    ('', 'source without a path; give a file, a folder or hf://'),
    (' ', 'source without a path'),
    ('a.jsonl,', 'source without a path; .* one comma between'),
    ('a.jsonl,,b.jsonl', 'source without a path'),
    ('?weight=2', 'source without a path'),
    ('a.jsonl?wieght=2', "option 'wieght=2'; give each of column, weight"),
    ('a.jsonl?weight', "option 'weight'; give .* with a value"),
    ('a.jsonl?column=', "option 'column='; give .* with a value"),
    ('a.jsonl?weight=1&weight=2', "option 'weight=2'; give .* at most once"),
    ('a.jsonl?weight=two', "weight='two'; give a finite number above 0"),
    ('a.jsonl?weight=0', 'weight=0.0; give a finite number above 0'),
    ('a.jsonl?weight=-1', 'weight=-1.0; give a finite number above 0'),
    ('a.jsonl?weight=nan', 'weight=nan; give a finite number above 0'),
    ('a.jsonl?weight=inf', 'weight=inf; give a finite number above 0'),
    ('a.jsonl?weight=1e999', 'weight=inf; give a finite number above 0'),
    ('a.jsonl?name=en', 'has a name or a revision, which only datasets of'),
    ('a.jsonl?revision=v1', 'has a name or a revision'),
    ('hf://datasets/owner', 'give hf://datasets/OWNER/NAME and the rest'),
    ('hf://datasets/o/n/data.parquet', 'give hf://datasets/OWNER/NAME'),
    ('hf://owner/name', 'give a local path or hf://datasets/OWNER/NAME'),
    ('https://x.org/a.jsonl', 'cannot be fetched; give a local path or'),
  ],
  ids=str,
)
def test_wrong_spec_is_one_clear_error(spec, match):
  with pytest.raises(errors.InputError, match=match):
    sources.parse(spec)


@pytest.fixture
def hub(monkeypatch):
  """Replaces datasets.load_dataset; holds its arguments and its answer."""

  class Hub:
    calls = []
    rows = ROWS

    def load_dataset(self, *args, **kwargs):
      self.calls.append((args, kwargs))
      if isinstance(self.rows, Exception):
        raise self.rows
      return iter(self.rows)

  answer = Hub()
  answer.calls = []
  monkeypatch.setattr(datasets, 'load_dataset', answer.load_dataset)
  return answer


def test_hub_dataset_is_streamed_with_its_options(hub):
  spec = 'hf://datasets/o/n?name=en&split=test&revision=v1&column=ids'
  (source,) = sources.parse(spec)
  assert list(sources.read(source)) == [[7, 8, 9], [0]]
  options = {'name': 'en', 'split': 'test', 'revision': 'v1'}
  assert hub.calls == [(('hf://datasets/o/n',), {**options, 'streaming': True})]


def test_hub_dataset_without_options_takes_its_defaults(hub):
  assert read('hf://datasets/o/n') == ['A cat.', 'naïve']
  options = {'name': None, 'split': 'train', 'revision': None}
  assert hub.calls == [(('hf://datasets/o/n',), {**options, 'streaming': True})]


def test_hub_dataset_is_not_read_further_than_asked_for(hub):
  hub.rows = ({'text': str(i)} for i in itertools.count())
  documents = sources.read(sources.Source('hf://datasets/o/n'))
  assert list(itertools.islice(documents, 3)) == ['0', '1', '2']
  assert next(hub.rows) == {'text': '3'}


@pytest.mark.parametrize(
  'error',
  [
    datasets.exceptions.DatasetNotFoundError('no such dataset'),
    ConnectionError('no network'),
    ValueError("Bad split: tset. Available splits: ['train']"),
    StopIteration(),
  ],
  ids=lambda error: type(error).__name__,
)
def test_hub_failure_is_one_clear_error(hub, error):
  hub.rows = error
  match = f'hf://datasets/o/n cannot .*{type(error).__name__}.*check the id'
  with pytest.raises(errors.InputError, match=match):
    sources.read(sources.Source('hf://datasets/o/n'))
