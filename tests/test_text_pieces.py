"""Tokens as people read them, against whole sequences as tokenizers decode."""

import functools

import hypothesis
from hypothesis import strategies
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders

from jumprelu_jax import embedded
from jumprelu_jax.lm import huggingface
from jumprelu_jax.text import pieces

LOST = '\ufffd'
TEXT = (
  'The café: 日本語 and 🙂👩‍👩‍👧, שלום, مرحبا, हिन्दी, e\u0301.\n\n\tIn  it\r\n'
)


@functools.cache
def byte_level():
  """The shipped one: English, so that other scripts are cut to bytes."""
  return huggingface.load_tokenizer(embedded.LM)


@functools.cache
def byte_fallback(strips=True):
  """Llama 2's kind: spaces are ▁, what is unknown is spelled in bytes."""
  letters = ['▁', *'abcdefghinortuvTI', '\n', 'é', LOST]
  merges = [('▁', 'a'), ('i', 'n'), ('▁', 'in'), ('▁', '▁')]
  words = ['<unk>', '<s>', '</s>', *(f'<0x{byte:02X}>' for byte in range(256))]
  words += [*letters, *(a + b for a, b in merges)]
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      {word: i for i, word in enumerate(words)},
      merges,
      unk_token='<unk>',
      byte_fallback=True,
      fuse_unk=True,
    )
  )
  tokenizer.normalizer = tokenizers.normalizers.Sequence(
    [
      tokenizers.normalizers.Prepend('▁'),
      tokenizers.normalizers.Replace(' ', '▁'),
    ]
  )
  steps = [
    decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()
  ]  # fmt: skip
  if strips:  # unlike Gemma's
    steps.append(decoders.Strip(' ', 1, 0))
  tokenizer.decoder = decoders.Sequence(steps)
  tokenizer.add_special_tokens(['<s>', '</s>'])
  return tokenizer


@functools.cache
def metaspace():
  tokenizer = tokenizers.Tokenizer(byte_fallback().model)
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  tokenizer.decoder = decoders.Sequence(
    [decoders.ByteFallback(), decoders.Metaspace()]
  )
  return tokenizer


TOKENIZERS = {
  'byte level': byte_level,
  'byte fallback': byte_fallback,
  'without strip': functools.partial(byte_fallback, False),
  'metaspace': metaspace,
}


def render(tokenizer, ids):
  return pieces.split(pieces.to_bytes(tokenizer, ids))


def decode(tokenizer, ids):
  return tokenizer.decode(ids, skip_special_tokens=False)


def is_same(got, want):
  """Decoders of Llama's kind drop the space that a text begins with."""
  return got in (want, f' {want}')


def draw_texts():
  """Any letters; more often ones of many bytes, or joined to one another."""
  letters = strategies.characters(exclude_categories=['Cs'])
  some = strategies.sampled_from(
    ['日本', '👩‍👩‍👧', '🙂', 'שלום', 'مرحبا', 'हिन्दी', 'e\u0301', '\t', '\r\n',
     '  ', ' in', 'a', '<0xE6>', 'Ġ', '▁', '⟨E6⟩', LOST]
  )  # fmt: skip
  return strategies.lists(some | letters, max_size=20).map(''.join)


@pytest.mark.parametrize('name', TOKENIZERS)
@hypothesis.settings(
  max_examples=60, deadline=None, derandomize=True, database=None
)
@hypothesis.given(text=draw_texts())
@hypothesis.example(text=TEXT)
def test_pieces_concatenate_to_the_decoded_text(name, text):
  tokenizer = TOKENIZERS[name]()
  ids = tokenizer.encode(text, add_special_tokens=False).ids
  found = render(tokenizer, ids)
  assert len(found) == len(ids)
  assert is_same(''.join(found), decode(tokenizer, ids))
  vocabulary = everything(name)
  assert vocabulary(ids) == found


@functools.cache
def everything(name):
  tokenizer = TOKENIZERS[name]()
  ids = range(tokenizer.get_vocab_size())
  return pieces.from_bytes(pieces.to_bytes(tokenizer, ids))


@pytest.mark.parametrize('name', TOKENIZERS)
def test_a_character_belongs_to_the_token_that_completes_it(name):
  """What a decoder makes of a beginning, but for the letter it has not yet."""
  tokenizer = TOKENIZERS[name]()
  ids = tokenizer.encode(TEXT, add_special_tokens=False).ids
  found = render(tokenizer, ids)
  assert '' in found
  for end in range(1, len(ids) + 1):
    want = decode(tokenizer, ids[:end])
    if name == 'byte level':
      want = want.rstrip(LOST)
    # One bad byte spoils all bytes beside it where bytes are a fallback.
    if LOST not in want:
      assert is_same(''.join(found[:end]), want)


@pytest.mark.parametrize('name', TOKENIZERS)
def test_a_window_cut_inside_characters_shows_their_bytes(name):
  tokenizer = TOKENIZERS[name]()
  encoding = tokenizer.encode('日a日', add_special_tokens=False)
  ids = encoding.ids[-7 - encoding.tokens[-7:].count('▁') :]
  assert ''.join(render(tokenizer, ids[1:-1])) == '⟨97⟩⟨A5⟩a⟨E6⟩⟨97⟩'
  assert render(tokenizer, ids[-2:-1]) == ['⟨97⟩']
  assert render(tokenizer, ids[-3:]) == ['', '', '日']


def test_lost_characters_of_the_text_itself_stay():
  for make in TOKENIZERS.values():
    tokenizer = make()
    ids = tokenizer.encode(f'a{LOST}日', add_special_tokens=False).ids
    assert ''.join(render(tokenizer, ids)).strip() == f'a{LOST}日'


def test_tokens_keep_their_space_and_their_name():
  found = everything('metaspace').texts_V
  ids = [byte_fallback().token_to_id(t) for t in ('▁a', 'a', '<s>', '<0xE6>')]
  assert found[ids].tolist() == [' a', 'a', '<s>', '⟨E6⟩']
  assert everything('byte level').texts_V[:3].tolist() == [
    '<pad>', '<eos>', '<bos>',
  ]  # fmt: skip
  assert render(byte_level(), [10**6]) == ['']  # there is none


def test_a_decoder_that_drops_the_first_space():
  vocab = {'<s>': 0, 'a': 1, '▁a': 2, 'b': 3, '▁b': 4}
  llama_like = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab, merges=[], unk_token='<s>')
  )
  llama_like.decoder = decoders.Metaspace()
  assert llama_like.decode([4]) == 'b'
  want = ['<s>', 'a', ' a', 'b', ' b', '']  # there is no sixth
  parts = pieces.to_bytes(llama_like, range(6))
  assert pieces.split_each(parts) == want


def test_without_a_decoder():
  words = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({'a': 0, LOST: 1, 'b': 2}, unk_token='a')
  )
  assert render(words, [2, 1, 0, 9]) == ['b', LOST, 'a', '']


@pytest.mark.parametrize(
  ('parts', 'want'),
  [
    ([], []),
    ([b'a', b'b'], ['a', 'b']),
    ([b'\xe6', b'\x97', b'\xa5', b'a'], ['日', 'a']),
    ([b' \xe6', b'\x97', b'\xa5a\xc3', b'\xa9', b''], [' 日aé', '']),
    ([b'a', b'\xe6', b'\x97'], ['a', '⟨E6⟩', '⟨97⟩']),
    ([b'\xa5', b'', b'\xe6a'], ['⟨A5⟩', '', '⟨E6⟩a']),
  ],
)
def test_tokens_of_one_character_are_a_group(parts, want):
  vocabulary = pieces.from_bytes(parts)
  ids = range(len(parts))
  found, groups = vocabulary(ids), vocabulary.groups(ids)
  assert [''.join(found[group]) for group in groups] == want
  covered = [i for group in groups for i in range(group.start, group.stop)]
  assert covered == list(ids)


def test_surrogates_and_overlong_bytes_are_no_characters():
  for part in (b'\xed\xa0\x80', b'\xc0\xaf', b'\xff', b'\xf4\x90\x80\x80'):
    want = ''.join(f'⟨{byte:02X}⟩' for byte in part)
    assert pieces.split([part]) == [want]
    assert ''.join(pieces.split([bytes([b]) for b in part])) == want


def test_many_windows_without_cut_characters_are_fast_to_read():
  """They are looked up, not put together from bytes."""
  vocabulary = pieces.Pieces(np.array(['a', ' b'], object), {})
  assert vocabulary(np.array([0, 1, 1])) == ['a', ' b', ' b']
