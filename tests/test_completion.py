"""Greedy completion, and a local model that answers."""

import asyncio

import numpy as np
import pytest

from jumprelu_jax import api
from jumprelu_jax import errors
from jumprelu_jax.autointerp import local
from jumprelu_jax.autointerp.requests import Request
from jumprelu_jax.lm import completion


@pytest.fixture(scope='module')
def lm(tiny_lm):
  return api.load_lm(tiny_lm)


def by_hand(lm, tokens, count):
  tokens = list(tokens)
  for _ in range(count):
    (logits_1LV,) = lm.run(np.array([tokens]))
    tokens.append(int(np.argmax(logits_1LV[0, -1])))
  return tokens


def test_each_token_is_the_likeliest_after_those_before(lm):
  start = [2, 10, 20, 30]
  got = completion.greedy(lm.model, start, 5, lambda new: False)
  assert start + got == by_hand(lm, start, 5)
  stopped = completion.greedy(lm.model, start, 5, lambda new: new[-1] == got[2])
  assert stopped == got[: got.index(got[2]) + 1]
  # The model has 32 positions.
  long = completion.greedy(lm.model, start, 100, lambda new: False)
  assert len(start) + len(long) == 32
  assert long[:5] == got


def test_a_text_without_room_is_refused(lm):
  for tokens in ([], [2] * 32):
    with pytest.raises(errors.InputError, match='expected 1 to 31'):
      completion.greedy(lm.model, tokens, 1, lambda new: False)


def ask(lm, text, **values):
  said = {'messages': (('user', text),), 'max_tokens': 4, 'typical': ''}
  return asyncio.run(local.Local(lm).answer(Request(**{**said, **values})))


def test_a_local_model_answers_or_says_why_not(lm):
  prompt = 'ab\n\nAnswer:'
  ids = [2, *lm.tokenizer.encode(prompt, add_special_tokens=False).ids]
  new = by_hand(lm, ids, 4)[len(ids) :]
  text = lm.tokenizer.decode(new).lstrip()
  cut = ask(lm, 'ab', end='\x00')
  assert (cut.reason, cut.detail) == ('truncated_answer', text)
  assert (cut.tokens_in, cut.tokens_out) == (len(ids), 4)
  # Up to the first letter, which is then the end.
  whole = ask(lm, 'ab', end=text[0])
  assert (whole.text, whole.reason) == (text[0], '')
  too_long = ask(lm, 'a' * 40)
  assert too_long.reason == 'prompt_too_long'
  assert 'the model has 32' in too_long.detail
