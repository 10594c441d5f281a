"""One long text in pieces: the ids of encoding it at once, in little memory."""

import itertools
import random
import tracemalloc

import hypothesis
from hypothesis import strategies
import numpy as np
import pytest
import tokenizers

from jumprelu_jax import embedded
from jumprelu_jax import errors
from jumprelu_jax import preemption
from jumprelu_jax.lm import huggingface
from jumprelu_jax.text import long_text
from jumprelu_jax.text import packing
from jumprelu_jax.text import tokens

# As tokenizer.json of GPT-2 and of Llama 3 have them.
GPT2 = (
  r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)
LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
  r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
WORDS = [
  *('the', 'House', 'met', 'at', 'noon', 'x', 'abababab', 'aaaa', "don't"),
  *('naïve', '☕', '人民代表', '12345', '...', '\n', '\n\n\n', '\t', '   '),
  *('<s>', '<mask>', '‍é', 'ﬁ', '"quoted', 'text"'),
]


def draw_text(seed, count):
  rng = random.Random(seed)
  words = [*WORDS, *('ab' * rng.randrange(1, 40) for _ in range(3))]
  gaps = ['', ' ', ' ', ' ', '  ']
  return ''.join(rng.choice(words) + rng.choice(gaps) for _ in range(count))


def train(tokenizer, trainer):
  tokenizer.train_from_iterator([draw_text(0, 3000)], trainer)
  return tokenizer


def byte_level(pattern):
  result = tokenizers.Tokenizer(tokenizers.models.BPE())
  pre = tokenizers.pre_tokenizers
  result.pre_tokenizer = pre.Sequence(
    [
      pre.Split(tokenizers.Regex(pattern), 'isolated'),
      pre.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  result.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True)
  return train(
    result,
    tokenizers.trainers.BpeTrainer(
      vocab_size=500,
      show_progress=False,
      initial_alphabet=pre.ByteLevel.alphabet(),
    ),
  )


def llama2(crosses_words=False):
  """BPE of the whole text, with ▁ for spaces and one before all."""
  result = tokenizers.Tokenizer(tokenizers.models.BPE(fuse_unk=True))
  if not crosses_words:
    result.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, show_progress=False)
  norm = tokenizers.normalizers
  result.normalizer = norm.Sequence([norm.Replace(' ', '▁')])
  train(result, trainer)
  result.pre_tokenizer = tokenizers.pre_tokenizers.Split('🂡', 'isolated')
  result.normalizer = norm.Sequence([norm.Prepend('▁'), norm.Replace(' ', '▁')])
  return result


def gemma():
  result = llama2()
  result.normalizer = tokenizers.normalizers.Replace(' ', '▁')
  result.pre_tokenizer = tokenizers.pre_tokenizers.Split(
    ' ', 'merged_with_previous'
  )
  return result


def metaspace():
  result = llama2()
  result.normalizer = None
  result.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(
    prepend_scheme='first', split=False
  )
  return result


def word_piece():
  result = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token='[UNK]'))
  result.normalizer = tokenizers.normalizers.BertNormalizer()
  result.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  return train(
    result,
    tokenizers.trainers.WordPieceTrainer(
      vocab_size=300, show_progress=False, special_tokens=['[UNK]']
    ),
  )


def unigram():
  result = tokenizers.Tokenizer(tokenizers.models.Unigram())
  result.normalizer = tokenizers.normalizers.NFKC()
  result.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  return train(
    result,
    tokenizers.trainers.UnigramTrainer(
      vocab_size=200,
      show_progress=False,
      special_tokens=['<unk>'],
      unk_token='<unk>',
    ),
  )


KINDS = {
  'gpt2': lambda: byte_level(GPT2),
  'llama3': lambda: byte_level(LLAMA3),
  'llama2': llama2,
  'gemma': gemma,
  'metaspace': metaspace,
  'crosses_words': lambda: llama2(crosses_words=True),
  'word_piece': word_piece,
  'unigram': unigram,
}


@pytest.fixture(scope='module', params=KINDS)
def tokenizer(request):
  result = KINDS[request.param]()
  result.add_special_tokens(
    ['<s>', tokenizers.AddedToken('<mask>', lstrip=True, rstrip=True)]
  )
  return result


def at_once(text, tokenizer):
  return tokenizer.encode(text, add_special_tokens=False).ids


def in_pieces(parts, tokenizer):
  pieces = list(long_text.encode(parts, tokenizer))
  assert all(ids.dtype == np.int32 for ids in pieces)
  return np.concatenate([[], *pieces]).astype(int).tolist(), len(pieces)


def test_ids_are_those_of_encoding_at_once(tokenizer, monkeypatch):
  monkeypatch.setattr(long_text, 'WINDOW', 1 << 14)
  text = draw_text(1, 12_000)
  assert len(text) > 3 * long_text.WINDOW
  got, pieces = in_pieces([text], tokenizer)
  assert pieces > 3
  assert got == at_once(text, tokenizer)


@hypothesis.settings(
  max_examples=8,
  deadline=None,
  derandomize=True,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
  runs=strategies.lists(
    strategies.tuples(
      strategies.sampled_from(['a', 'ab', ' ', '\n', '1', 'é', '人', '☕', '.'])
      | strategies.text(min_size=1, max_size=3),
      strategies.sampled_from([1, 100, 1001, 3000]),
      strategies.integers(0, 9),
    ),
    min_size=1,
    max_size=4,
  ),
  cut=strategies.sampled_from([1000, 4097, 1 << 20]),
)
def test_ids_of_long_runs_are_those_of_encoding_at_once(
  tokenizer, monkeypatch, runs, cut
):
  monkeypatch.setattr(long_text, 'WINDOW', 1 << 12)
  monkeypatch.setattr(long_text, '_OVERLAP', 1 << 9)
  text = ''.join(
    unit * count + draw_text(seed, 50) for unit, count, seed in runs
  )
  parts = (text[i : i + cut] for i in range(0, len(text), cut))
  assert in_pieces(parts, tokenizer)[0] == at_once(text, tokenizer)


def test_runs_are_not_cut(monkeypatch):
  """Unigram decides how to cut a run from its end, far behind the window."""
  monkeypatch.setattr(long_text, 'WINDOW', 1 << 12)
  monkeypatch.setattr(long_text, '_OVERLAP', 1 << 9)
  result = KINDS['unigram']()
  for unit in ("'s", 'ab', 'aab', 'abcabd'):
    for count in range(9000, 9007):
      text = 'the House ' + unit * (count // len(unit)) + draw_text(count, 40)
      assert in_pieces([text], result)[0] == at_once(text, result)


def test_what_cannot_be_cut_is_refused_beyond_a_bound(monkeypatch):
  monkeypatch.setattr(long_text, '_LONGEST', 1 << 19)
  # One word to a model of whole words.
  words = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({'a': 0, '?': 1}, unk_token='?')
  )
  words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  assert in_pieces(['a ' + 'b' * 400_000], words)[0] == [0, 1]
  with pytest.raises(errors.InputError, match='cut it into several documents'):
    in_pieces(itertools.repeat('b' * 1000, 1000), words)


def test_text_without_a_token_for_it_is_one_clear_error():
  words = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({'a': 0}, unk_token='?')
  )
  for text in ('b', 'b ' * 100_000):
    with pytest.raises(errors.InputError, match='cannot encode the text .*UNK'):
      list(packing.pack(tokens.encode([text], words), 8, bos_id=0, pad_id=0))


def test_sigterm_is_heard(monkeypatch):
  monkeypatch.setattr(preemption, 'is_asked', lambda: True)
  shipped = huggingface.load_tokenizer(embedded.LM)
  with pytest.raises(preemption.PreemptedError, match='begins again'):
    next(long_text.encode(['a b ' * 50_000], shipped))


@pytest.mark.parametrize('packed', packing.PACKINGS)
def test_rows_are_those_of_whole_documents(packed):
  shipped = huggingface.load_tokenizer(embedded.LM)
  long = '<bos>' + draw_text(2, 20_000)
  documents = ['The House', long, 'met at noon', '<bos>', long]
  whole = [np.array(at_once(text, shipped), np.int32) for text in documents]
  assert len(long) > long_text.WINDOW

  def pack(documents):
    pack = packing.PACKINGS[packed]
    return np.stack(list(pack(documents, 64, bos_id=2, pad_id=0)))

  np.testing.assert_array_equal(
    pack(tokens.encode(iter(documents), shipped)), pack(iter(whole))
  )


def test_memory_does_not_grow_with_a_text(monkeypatch):
  """Of the parts of a text without end, as many are read as rows need."""
  monkeypatch.setattr(long_text, 'WINDOW', 1 << 13)
  shipped = huggingface.load_tokenizer(embedded.LM)
  parts = itertools.repeat('The House met at noon. ' * 100)
  rows = packing.pack(tokens.encode([parts], shipped), 128, bos_id=2, pad_id=0)
  peaks = []
  for count in (50, 500):
    tracemalloc.start()
    for _ in itertools.islice(rows, count):
      pass
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
  assert peaks[1] < 1.5 * peaks[0]
