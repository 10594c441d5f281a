"""What is said of a run's text: too little of it, too often, seen before."""

import json

import numpy as np
import pytest

from jumprelu_jax import corpus
from jumprelu_jax import inputs
from jumprelu_jax import run_folder
from jumprelu_jax import runs
from jumprelu_jax import sweeps

BOS, PAD = 2, 0


def draw(count, length=33, seed=0):
  rng = np.random.default_rng([seed, count])
  tokens_NL = rng.integers(3, 1000, (count, length)).astype(np.int32)
  tokens_NL[:, 0] = BOS
  return tokens_NL


@pytest.mark.parametrize('share', [0.0, 0.25, 1.0], ids=str)
@pytest.mark.parametrize('shift', [0, 1, 17], ids=str)
def test_overlap_is_the_share_of_sequences_found_anywhere(share, shift):
  heldout_NL = draw(80, length=129)
  count = int(80 * share)
  # Packed after other text, so that rows begin elsewhere.
  text = np.concatenate(
    [draw(1, shift + 1, 7)[0, 1:], heldout_NL[:count].ravel(), draw(60)[1]]
  )
  others_NL = text[: len(text) // 99 * 99].reshape(-1, 99)
  others_NL = np.concatenate([others_NL, draw(3, 99, 5)])
  pieces = [row[49:81].tolist() for row in heldout_NL]
  rows = [row.tolist() for row in others_NL]
  want = np.mean(
    [
      any(piece == row[i : i + 32] for row in rows for i in range(68))
      for piece in pieces
    ]
  )
  got = corpus.overlap(heldout_NL, others_NL, (BOS, PAD))
  assert got == want
  assert (want > 0) == (share > 0)


def test_padding_is_no_overlap():
  padded_NL = draw(4)
  padded_NL[:, 5:] = PAD
  assert corpus.overlap(padded_NL, padded_NL, (BOS, PAD)) == 0.0
  assert corpus.overlap(draw(4), draw(4), (BOS, PAD)) == 1.0


def test_overlap_with_much_text_is_estimated(monkeypatch):
  monkeypatch.setattr(corpus, '_LOOKED_AT', 33 * 100)
  others_NL = draw(400)
  got = corpus.overlap(others_NL[::2], others_NL, (BOS, PAD))
  assert 0.5 < got <= 1.0


def test_fewer_sequences_than_asked_for_are_said(tmp_path, capsys):
  wanted = {'text': 'a.txt', 'sequences': 9, 'context_length': 33}
  for count in (9, 8):
    corpus.keep(
      tmp_path / f'{count}.npy', wanted, lambda n=count: iter(draw(n))
    )
    said = capsys.readouterr().err
    assert ('fewer than the 9 asked for' in said) == (count == 8)


@pytest.fixture
def said(tiny_run, tmp_path, capsys):
  """Returns a function: a run on these texts → what it says."""

  def run_on(training, heldout, documents):
    for name, letters in (('a', training), ('b', heldout)):
      rng = np.random.default_rng(0)
      texts = [''.join(rng.choice([*letters], 50)) for _ in range(documents)]
      lines = [json.dumps({'text': text}) for text in texts]
      (tmp_path / f'{name}.jsonl').write_text('\n'.join(lines))
    run = tiny_run.with_values(
      {
        'sweep.saes': ['jumprelu/l0/1e-3'],
        'train.steps': 20,
        'text.harvest': str(tmp_path / 'a.jsonl'),
        'text.heldout': str(tmp_path / 'b.jsonl'),
      }
    )
    swept = sweeps.expand(run)
    run_folder.claim(tmp_path / 'run', run)
    prepared = inputs.prepare(next(iter(swept.values())))
    runs.run_all(prepared, swept, tmp_path / 'run')
    return capsys.readouterr().err

  return run_on


def test_a_run_says_that_it_is_evaluated_on_what_it_was_trained_on(said):
  text = said('abcdefgh', 'abcdefgh', documents=5)
  assert 'about 100% of its sequences are in the training text' in text
  # 20 steps of 64 rows, of 5 documents of 50 letters.
  assert 'each of 250 rows is seen about 5 times' in text


def test_a_run_on_other_text_says_nothing(said):
  text = said('abcdefgh', 'ijklmnop', documents=60)
  assert 'training text' not in text
  assert 'rows is seen' not in text
