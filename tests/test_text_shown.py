"""Wherever tokens are shown to people, characters that were cut are whole."""

import dataclasses

from helpers import written_records
from jax import numpy as jnp
import numpy as np
import pyarrow as pa
import pytest

from experiments.dashboard import details
from experiments.dashboard import overview
from experiments.dashboard import search
from jumprelu_jax import api
from jumprelu_jax.autointerp import prompts
from jumprelu_jax.autointerp import windows as windows_lib
from jumprelu_jax.exchange import details as details_lib
from jumprelu_jax.lm import generation
from jumprelu_jax.ratings import windows
from jumprelu_jax.sae import released

# A vocabulary with 日 (E6 97 A5) in three tokens and é (C3 A9) in two.
TEXTS = [
  'a',
  b'\xe6',
  b'\x97',
  b'\xa5',
  ' b',
  ' c\n',
  b' \xc3',
  b'\xa9',
  '\ufffd',
]
# The last window ends inside a character, the second begins in one.
ROW = [0, 1, 2, 3, 4, 6, 7, 8, 2, 3, 1, 2, 3, 5, 0, 1]
SHOWN = ['a日 b é\ufffd', '⟨97⟩⟨A5⟩日 c\na⟨E6⟩']


@pytest.fixture(scope='module')
def records(tmp_path_factory):
  """Two windows, in which latent 0 fires at most at the middle of 日."""
  f_MNL = np.zeros((1, 1, 16), 'float32')
  f_MNL[0, 0, [1, 2, 5, 11]] = 1, 4, 2, 3
  folder = tmp_path_factory.mktemp('shown') / 'records'
  return written_records.write(
    folder, [ROW], f_MNL, texts=TEXTS, window=8, per_stratum=1, strata=1
  )


def cut(start, values):
  values_L = np.zeros(8)
  values_L[list(values)] = list(values.values())
  return windows_lib.Window(np.array(ROW[start : start + 8]), values_L)


def test_records(records):
  assert ''.join(records.pieces(ROW[:8])) == SHOWN[0]
  assert ''.join(records.pieces(np.array(ROW[8:]))) == SHOWN[1]
  assert records.pieces(ROW[:5]) == ['a', '', '', '日', ' b']
  want = [
    'a',
    '⟨E6⟩',
    '⟨97⟩',
    '⟨A5⟩',
    ' b',
    ' c\n',
    ' ⟨C3⟩',
    '⟨A9⟩',
    '\ufffd',
  ]
  assert records.texts.tolist() == want


def test_dashboards(records):
  latents = records.latents()
  ((_, chunk),) = details.chunks(records, latents, 8)
  (latent,) = chunk['latents']
  for example in latent['examples']:
    start = example['position'] - example['at']
    want = records.pieces(ROW[start : start + 8])
    assert [chunk['texts'][i] for i in example['tokens']] == want
  assert len({e['position'] for e in latent['examples']}) > 1
  assert overview.columns(records, latents)['texts'] == []


def test_search():
  texts = np.array(['⟨E6⟩', ' 日本', '日'], object)
  token = {'token': 0, 'count': 1}
  table = _latents([[token, token | {'token': 1}], [token | {'token': 2}]])
  assert search.buckets(table, texts) == {
    '27e8_65': {'⟨e6⟩': {'fires': [0], 'promotes': []}},
    '65e5_672c': {'日本': {'fires': [0], 'promotes': []}},
    '65e5': {'日': {'fires': [1], 'promotes': []}},
  }


def _latents(fires):
  kinds = {'tokens': 'count', 'promoted': 'logit'}
  return pa.table(
    {
      name: pa.array(
        fires if name == 'tokens' else [[]] * len(fires),
        pa.list_(pa.struct([('token', pa.int32()), (value, pa.int64())])),
      )
      for name, value in kinds.items()
    }
  )


def test_prompts(records):
  first = cut(0, {1: 1, 2: 4, 5: 2})
  (_, (_, user)) = prompts.explain([first], records.pieces).messages
  assert 'a<<日>>(10) b<< é>>(5)\ufffd' in user
  second = cut(8, {0: 1})
  (_, (_, user)) = prompts.detect('X', [first, second], records.pieces).messages
  assert user.endswith(f'Text 1:\n{SHOWN[0]}\n\nText 2:\n{SHOWN[1]}')
  marks = [np.isin(np.arange(8), [3, 4]), np.isin(np.arange(8), [7])]
  asked = prompts.fuzz('X', [first, second], marks, records.pieces)
  assert 'a<<日>><< b>> é\ufffd' in asked.messages[1][1]
  assert 'a<<⟨E6⟩>>' in asked.messages[1][1]
  asked = prompts.simulate('X', first, records.pieces)
  lines = ['"a"', '""', '""', '"日"', '" b"', '" "', '"é"', '"\ufffd"']
  want = '\n'.join(f'{n}: {line}' for n, line in enumerate(lines, start=1))
  assert asked.messages[1][1].endswith(want)


def test_ratings(records):
  rng = np.random.default_rng(0)
  shown = windows.Extent(per_stratum=4, before=8, after=8)
  (top, *_) = windows.of_latents(records, [0], shown, rng)[0]
  by_text = {
    ''.join(text for text, _ in window['tokens']): window
    for window in top['windows']
  }
  assert by_text.keys() >= {SHOWN[0]}
  window = by_text[SHOWN[0]]
  # All bytes of 日 are one token, with the largest of their activations.
  assert window['tokens'][:4] == [['a', 0], ['日', 100], [' b', 0], [' é', 50]]
  for one in top['windows']:
    assert one['tokens'][one['at']][1] > 0


@pytest.fixture(scope='module')
def lm():
  return api.load_lm()


TEXT = ' Tōkyō 日本 🙂\u200d🙂'


def test_words(lm):
  (tokens_L,) = lm.tokens(TEXT)
  words = lm.words(tokens_L)
  assert len(words) == len(tokens_L)
  assert words[0] == '<bos>'
  assert ''.join(words[1:]) == lm.tokenizer.decode(tokens_L.tolist()) == TEXT
  assert lm.text(tokens_L) == TEXT
  assert lm.words(tokens_L[-1:])[0].startswith('⟨')


def test_one_bos(lm):
  bos = lm.model.architecture.bos_id
  name = lm.tokenizer.id_to_token(bos)
  plain, marked, empty = lm.tokens([TEXT, name + TEXT, name])
  np.testing.assert_array_equal(marked, plain)
  assert empty[0] == bos
  assert bos not in empty[1:]
  twice = lm.tokens(name + name)[0]  # what the text itself repeats stays
  assert twice.tolist() == [bos, bos]


def test_generated_text_keeps_its_space_and_its_characters(lm, monkeypatch):
  (tokens_L,) = lm.tokens(TEXT + '日')
  eos = lm.tokenizer.token_to_id('<eos>')
  added = [*tokens_L[1:-1].tolist(), eos]
  monkeypatch.setattr(generation, 'generate', lambda *_, **__: np.array(added))
  assert lm.generate('a', len(added)) == TEXT + '⟨E6⟩⟨97⟩'


def test_promoted_tokens_do_not_follow_one_another(lm):
  """Bytes that would make a character, were they one after the other."""
  ids = lm.tokens('日')[0][-3:].tolist()
  assert lm.words(ids) == ['', '', '日']
  V, D = lm.model.embed_VD.shape
  embed_VD = np.zeros((V, D), 'float32')
  embed_VD[ids, 0] = 3, 2, 1
  model = dataclasses.replace(lm.model, embed_VD=jnp.asarray(embed_VD))
  lm = dataclasses.replace(lm, model=model)
  sae = api.SAE(
    released.SAE(
      W_enc=jnp.zeros((D, 1)), b_enc=jnp.zeros(1), b_dec=jnp.zeros(D),
      W_dec=jnp.ones((1, D)),
      threshold=jnp.zeros(1),
    ),
    details_lib.Details(site='resid_post', layer=0),
  )  # fmt: skip
  found = [word for word, _ in lm.promoted(sae, 0, count=3)]
  assert found == ['⟨E6⟩', '⟨97⟩', '⟨A5⟩']
