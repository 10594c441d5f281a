"""Settings in tokenizer.json that are not vocabulary change no ids."""

import itertools
import json

import hypothesis
from hypothesis import strategies
import pytest
import tokenizers

from jumprelu_jax.lm import huggingface
from jumprelu_jax.text import tokens

_LETTERS = 'abc d'
_SPECIAL = ('<pad>', '<s>', '</s>')
_UNK = '<unk>'


def _words():
  """The special tokens, letters, and some longer pieces."""
  pairs = [a + b for a, b in itertools.product('abc', repeat=2)]
  return [*_SPECIAL, _UNK, *_LETTERS, *pairs, 'abab', 'cab']


def _model(kind):
  words = _words()
  vocab = {word: i for i, word in enumerate(words)}
  if kind == 'BPE':
    pairs = [tuple(word) for word in words if len(word) == 2]
    merges = [*pairs, ('ab', 'ab'), ('c', 'ab')]
    return tokenizers.models.BPE(vocab, merges, unk_token=_UNK)
  if kind == 'Unigram':
    scored = [(word, -1.5 - 0.01 * i) for i, word in enumerate(words)]
    return tokenizers.models.Unigram(scored, unk_id=len(_SPECIAL))
  if kind == 'WordPiece':
    return tokenizers.models.WordPiece(
      vocab, unk_token=_UNK, continuing_subword_prefix=''
    )
  return tokenizers.models.WordLevel(vocab, unk_token=_UNK)


def _plain(kind, splits):
  """A tokenizer with nothing but a vocabulary and how it is applied."""
  result = tokenizers.Tokenizer(_model(kind))
  if splits:
    result.pre_tokenizer = tokenizers.pre_tokenizers.Split(' ', 'isolated')
  result.add_special_tokens(list(_SPECIAL))
  return result


_NUMBERS = strategies.integers(1, 9)
_SIDES = strategies.sampled_from(['Left', 'Right'])
_TRUNCATIONS = strategies.none() | strategies.fixed_dictionaries(
  {
    'direction': _SIDES,
    'max_length': _NUMBERS,
    'strategy': strategies.sampled_from(['LongestFirst', 'OnlyFirst']),
    'stride': strategies.just(0),
  }
)
_PADDINGS = strategies.none() | strategies.fixed_dictionaries(
  {
    'strategy': strategies.just('BatchLongest')
    | strategies.builds(lambda n: {'Fixed': n}, _NUMBERS),
    'direction': _SIDES,
    'pad_to_multiple_of': strategies.none() | _NUMBERS,
    'pad_id': strategies.integers(0, 20),
    'pad_type_id': strategies.just(0),
    'pad_token': strategies.sampled_from([*_SPECIAL, 'a']),
  }
)
_TEXT = {'Sequence': {'id': 'A', 'type_id': 0}}
_BOS = {'SpecialToken': {'id': '<s>', 'type_id': 0}}
_TEMPLATES = strategies.lists(
  strategies.sampled_from([_TEXT, _BOS]), max_size=3
).map(
  lambda single: {
    'type': 'TemplateProcessing',
    'single': single,
    'pair': [_TEXT, {'Sequence': {'id': 'B', 'type_id': 1}}],
    'special_tokens': {'<s>': {'id': '<s>', 'ids': [1], 'tokens': ['<s>']}},
  }
)
_ROBERTA = {
  'type': 'RobertaProcessing',
  'sep': ['</s>', 2],
  'cls': ['<s>', 1],
  'trim_offsets': True,
  'add_prefix_space': False,
}
_PROCESSORS = (
  strategies.none()
  | strategies.just(_ROBERTA)
  | _TEMPLATES
  | strategies.lists(_TEMPLATES, min_size=1, max_size=2).map(
    lambda several: {'type': 'Sequence', 'processors': several}
  )
)
_TEXTS = strategies.lists(
  strategies.text(alphabet=_LETTERS, min_size=1, max_size=40)
  | strategies.just('a<s>cab<pad>'),
  min_size=1,
  max_size=3,
)


@hypothesis.settings(
  max_examples=100,
  deadline=None,
  derandomize=True,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
  kind=strategies.sampled_from(['BPE', 'Unigram', 'WordPiece', 'WordLevel']),
  splits=strategies.booleans(),
  truncation=_TRUNCATIONS,
  padding=_PADDINGS,
  processor=_PROCESSORS,
  dropout=strategies.none() | strategies.floats(0.1, 1.0),
  texts=_TEXTS,
)
def test_ids_are_those_of_a_file_without_settings(
  tmp_path, kind, splits, truncation, padding, processor, dropout, texts
):
  plain = _plain(kind, splits)
  want = [plain.encode(text, add_special_tokens=False).ids for text in texts]
  saved = json.loads(plain.to_str())
  saved |= {'truncation': truncation, 'padding': padding}
  saved['post_processor'] = processor
  if kind == 'BPE':
    saved['model']['dropout'] = dropout
  (tmp_path / 'tokenizer.json').write_text(json.dumps(saved))

  loaded = huggingface.load_tokenizer(tmp_path)
  assert [
    loaded.encode(text, add_special_tokens=False).ids for text in texts
  ] == want
  # All at once, which is what padding looks at.
  assert [ids.tolist() for ids in tokens.encode(iter(texts), loaded)] == want


@pytest.mark.parametrize('kind', ['BPE', 'Unigram', 'WordPiece', 'WordLevel'])
def test_ids_are_those_of_transformers(tmp_path, kind):
  transformers = pytest.importorskip('transformers')
  plain = _plain(kind, splits=True)
  theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=plain)
  changed = _plain(kind, splits=True)
  changed.enable_truncation(3)
  changed.enable_padding(pad_id=4, pad_token='a', direction='left')
  changed.save(str(tmp_path / 'tokenizer.json'))
  texts = ['abab cab d', 'c', 'a<s>b' * 20]
  want = theirs(texts, add_special_tokens=False).input_ids
  loaded = huggingface.load_tokenizer(tmp_path)
  assert [ids.tolist() for ids in tokens.encode(iter(texts), loaded)] == want


def test_special_tokens_are_still_added_for_those_who_ask(tmp_path):
  plain = _plain('BPE', splits=False)
  plain.post_processor = tokenizers.processors.TemplateProcessing(
    single='<s> $A', special_tokens=[('<s>', 1)]
  )
  plain.save(str(tmp_path / 'tokenizer.json'))
  loaded = huggingface.load_tokenizer(tmp_path)
  assert loaded.encode('d').ids == [1, _words().index('d')]
