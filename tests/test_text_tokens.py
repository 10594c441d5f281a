"""Documents to token ids: text, ids, conversations, mixes by weight."""

import itertools
import json
import shutil

import numpy as np
import pytest
import tokenizers

from jumprelu_jax import errors
from jumprelu_jax import inputs
from jumprelu_jax.text import tokens

WORDS = ['<pad>', '<eos>', '<bos>', '<user>', '<assistant>']
TEMPLATE = (
  '{{ bos_token }}{% for message in messages %}'
  "{% if message['role'] not in ('user', 'assistant') %}"
  "{{ raise_exception('No such role.') }}{% endif %}"
  " <{{ message['role'] }}> {{ message['content'] }}{% endfor %}"
)
CHAT = [
  {'role': 'user', 'content': '0 1'},
  {'role': 'assistant', 'content': '2'},
]


@pytest.fixture(scope='module')
def tokenizer():
  """Five special tokens, then '0' is token 5, '1' is token 6, …"""
  vocab = {word: i for i, word in enumerate(WORDS)}
  vocab |= {str(i): 5 + i for i in range(130)}
  result = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(vocab, unk_token='<pad>')
  )
  result.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  result.post_processor = tokenizers.processors.TemplateProcessing(
    single='<bos> $A', special_tokens=[('<bos>', 2)]
  )
  return result


@pytest.fixture
def model_folder(tokenizer, tmp_path):
  """Returns a function that writes a tokenizer with a chat template, or not."""

  def write(place):
    config = {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'bos_token': '<bos>',
    }
    if place == 'tokenizer_config.json':
      config['chat_template'] = TEMPLATE
    if place == 'chat_template.jinja':
      (tmp_path / place).write_text(TEMPLATE)
    tokenizer.save(str(tmp_path / 'tokenizer.json'))
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
    return tmp_path

  return write


def encode(*args):
  encoded = list(tokens.encode(*args))
  assert all(ids.dtype == np.int32 for ids in encoded)
  return [ids.tolist() for ids in encoded]


@pytest.mark.parametrize('count', [0, 1, 63, 64, 65, 130], ids=str)
def test_encode_gives_every_document_in_order_without_specials(
  tokenizer, count
):
  documents = (f'{i} 0' for i in range(count))
  assert encode(documents, tokenizer) == [[5 + i, 5] for i in range(count)]


def test_encode_keeps_the_order_of_documents_of_every_kind(tokenizer):
  documents, want = [], []
  for i in range(100):
    documents += [f'{i}', [i, 3], [{'role': 'user', 'content': f'{i} 1'}]]
    want += [[5 + i], [i, 3], [2, 5 + i, 6]]

  def render(conversation):
    return f'<bos> {conversation[0]["content"]}'

  assert encode(documents, tokenizer, render) == want


def test_encode_reads_no_further_than_a_batch(tokenizer):
  documents = (str(i % 9) for i in itertools.count())
  assert next(tokens.encode(documents, tokenizer)).tolist() == [5]
  assert int(next(documents)) == 64 % 9


@pytest.mark.parametrize(
  ('ids', 'match'),
  [
    ([0, 135, 3], 'token id 135, .* has ids 0 to 134; give token ids that'),
    ([4, -1, 3], 'token id -1, but the tokenizer of the model has ids 0 to'),
    ([1 << 70], f'token id {1 << 70}, but'),
  ],
  ids=['above', 'below', 'huge'],
)
def test_token_id_outside_of_the_vocabulary_is_refused(tokenizer, ids, match):
  assert encode([[0, 134]], tokenizer) == [[0, 134]]
  with pytest.raises(errors.InputError, match=match):
    encode([ids], tokenizer)


def test_token_ids_above_a_gap_in_the_vocabulary_are_allowed():
  gappy = tokenizers.Tokenizer(tokenizers.models.WordLevel({'a': 0, 'b': 9}))
  assert encode([[9, 0]], gappy) == [[9, 0]]
  with pytest.raises(errors.InputError, match='has ids 0 to 9'):
    encode([[10]], gappy)


def test_conversation_without_a_chat_template_is_refused(tokenizer):
  with pytest.raises(errors.InputError, match='no chat template; give a mod'):
    encode([CHAT], tokenizer)


@pytest.mark.parametrize(
  'place', ['tokenizer_config.json', 'chat_template.jinja'], ids=str
)
def test_chat_template_of_a_model_folder_renders(
  tokenizer, model_folder, place
):
  pytest.importorskip('transformers')
  render = tokens.chat_renderer(model_folder(place))
  assert render(CHAT) == '<bos> <user> 0 1 <assistant> 2'
  assert encode([CHAT], tokenizer, render) == [[2, 3, 5, 6, 4, 7]]
  with pytest.raises(errors.InputError, match=r"\['boss'\] .*No such role"):
    render([{'role': 'boss', 'content': '1'}])


@pytest.mark.parametrize(
  'settings', [None, '{"bos_token": "<bos>"}', '[]', 'no json'], ids=str
)
def test_model_folder_without_a_chat_template_has_no_renderer(
  tmp_path, settings
):
  if settings is not None:
    (tmp_path / 'tokenizer_config.json').write_text(settings)
  assert tokens.chat_renderer(tmp_path) is None


def test_chat_template_without_a_tokenizer_is_one_clear_error(tmp_path):
  (tmp_path / 'chat_template.jinja').write_text(TEMPLATE)
  with pytest.raises(errors.InputError, match='pip install transformers jin'):
    tokens.chat_renderer(tmp_path)


def test_plain_text_needs_no_chat_template(tokenizer, tmp_path):
  render = tokens.lazy_chat_renderer(tmp_path)
  assert encode(['0 1'], tokenizer, render) == [[5, 6]]
  with pytest.raises(errors.InputError, match='no chat template; give a mod'):
    encode([CHAT], tokenizer, render)


def test_plain_text_needs_no_chat_template_that_works(
  tiny_lm, tiny_run, tmp_path
):
  shutil.copytree(tiny_lm, tmp_path / 'lm')
  (tmp_path / 'lm' / 'chat_template.jinja').write_text(TEMPLATE)
  (tmp_path / 'lm' / 'tokenizer_config.json').write_text('no json')
  prepared = inputs.prepare(
    tiny_run.with_values({'lm.path': str(tmp_path / 'lm')})
  )
  want = inputs.prepare(tiny_run).heldout_NL
  np.testing.assert_array_equal(prepared.heldout_NL, want)


def endless(letter):
  return (f'{letter}{i}' for i in itertools.count())


def test_one_stream_passes_through_untouched():
  stream = endless('a')
  assert tokens.mix([stream], [0.3], seed=0) is stream


@pytest.mark.parametrize('weights', [(1, 1), (2, 1, 1), (0.1, 0.9)], ids=str)
@pytest.mark.parametrize('seed', range(3), ids=str)
def test_weights_are_shares_of_documents(weights, seed):
  streams = [endless(letter) for letter in 'abc'[: len(weights)]]
  count = 10_000
  mixed = list(itertools.islice(tokens.mix(streams, weights, seed), count))
  for letter, weight in zip('abc', weights):
    share = weight / sum(weights)
    drawn = sum(document[0] == letter for document in mixed)
    # Four standard deviations of a binomial.
    assert abs(drawn - count * share) < 4 * (count * share * (1 - share)) ** 0.5


@pytest.mark.parametrize('seed', range(3), ids=str)
def test_draws_are_independent(seed):
  streams = [endless('a'), endless('b')]
  mixed = itertools.islice(tokens.mix(streams, [1, 1], seed), 10_000)
  letters = ''.join(document[0] for document in mixed)
  # Of 9999 pairs, half are of equal letters; 4 standard deviations are 200.
  equal = sum(a == b for a, b in itertools.pairwise(letters))
  assert abs(equal - 4999.5) < 200


def test_mix_keeps_the_order_within_a_stream_and_loses_nothing():
  mixed = itertools.islice(
    tokens.mix([endless('a'), endless('b')], [1, 2], seed=5), 1000
  )
  got = {'a': [], 'b': []}
  for document in mixed:
    got[document[0]].append(int(document[1:]))
  assert got == {k: list(range(len(v))) for k, v in got.items()}


def test_mix_is_a_function_of_the_seed():
  def draw(seed):
    streams = [endless('a'), endless('b')]
    return list(itertools.islice(tokens.mix(streams, [1, 1], seed), 50))

  assert draw(3) == draw(3)
  assert draw(3) != draw(4)


def test_mix_ends_with_the_stream_that_ends_first():
  mixed = list(tokens.mix([endless('a'), iter('bcd')], [1, 1], seed=0))
  assert [document for document in mixed if document[0] != 'a'] == [*'bcd']
  # The stream was drawn a fourth time; until then, others gave documents.
  only_short = list(tokens.mix([iter('bcd'), endless('a')], [1e9, 1], seed=0))
  assert only_short == [*'bcd']
