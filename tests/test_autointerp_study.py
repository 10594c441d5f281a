"""Explain, simulate, detect, fuzz: synthetic latents score as they must."""

import asyncio
import functools
import json
import os
import re
import signal

from helpers import chat_server
from helpers import small_world
from helpers import written_records
from helpers.chat_server import Reply
import numpy as np
import pytest

from jumprelu_jax import preemption
from jumprelu_jax.autointerp import asking
from jumprelu_jax.autointerp import background as background_lib
from jumprelu_jax.autointerp import cache as cache_lib
from jumprelu_jax.autointerp import cases
from jumprelu_jax.autointerp import chat
from jumprelu_jax.autointerp import reasons
from jumprelu_jax.autointerp import requests
from jumprelu_jax.autointerp import study

CHOICE = cases.Choice(scoring=6, background=4, min_windows=2)
SLOW = 11  # tokens of latents that the server does harm to
BUSY, BROKEN, MUTE, COUNTS_WRONG, REPAIRED, CUT, DROPPED = range(12, 19)


class Model:
  """A reader that answers by a function of the request's body."""

  def __init__(self, answer):
    self.identity, self._answer = {'model': 'm'}, answer

  async def answer(self, request):
    messages = [{'role': r, 'content': c} for r, c in request.messages]
    return requests.Answer(self._answer({'messages': messages}))


class Forgetful:
  """A cache that keeps nothing, and so waits for no disk."""

  def get(self, key):
    return None

  def put(self, key, request, answer):
    pass

  def spent(self):
    return 0, 0, 0


def run(records, reader, path, measures=study.MEASURES, choice=CHOICE):
  async def go():
    cache = cache_lib.Cache(path) if path else Forgetful()
    ask = asking.Asker(reader, cache)
    setting = study.Setting(tuple(measures), records.pieces)
    return await study.run(
      cases.load(records, choice), setting, ask, total=1, at_a_time=8
    )

  return {row['latent']: row for row in asyncio.run(go())}


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  return small_world.make(tmp_path_factory.mktemp('world') / 'r', more=12)


def test_a_run_that_is_asked_to_end_keeps_its_answers(world, tmp_path):
  asked = []

  def answer(body):
    asked.append(json.dumps(body))
    if len(asked) == 9:
      os.kill(os.getpid(), signal.SIGTERM)
    return chat_server.honest(body)

  with preemption.heard(), pytest.raises(preemption.PreemptedError):
    run(world, Model(answer), tmp_path / 'stopped')
  stopped = len(asked)
  again = run(world, Model(answer), tmp_path / 'stopped')
  assert again == run(world, Model(chat_server.honest), tmp_path / 'whole')
  assert 9 <= stopped < len(asked)
  assert len(asked) == len(set(asked))  # nothing was asked twice


def check_all_end(rows):
  for row in rows.values():
    for name in study.MEASURES:
      score, reason = row[name], row[f'{name}_reason']
      assert (score is None) == (reason is not None)
      assert reason is None or reason in reasons.REASONS


def test_a_known_explanation_scores_one(world, tmp_path):
  rows = run(world, Model(chat_server.honest), tmp_path / 'answers')
  check_all_end(rows)
  for latent in (small_world.TOKEN, small_world.OTHER, *range(6, 18)):
    row = rows[latent]
    for name in study.ASKED:
      assert row[name] == pytest.approx(1), (latent, name)
    # Of a token that is not in the first half a table knows only the mean.
    assert row['token_lookup'] == pytest.approx(1, abs=0.01)
  assert rows[small_world.TOKEN]['explanation'] == 'Active on the token t3.'
  # Its second token is explained, and fires after the first alone.
  assert 0 < rows[small_world.BIGRAM]['simulation'] < 0.95
  assert rows[small_world.DEAD]['simulation_reason'] == 'dead'
  assert rows[small_world.RARE]['fuzzing_reason'] == 'too_few_examples'
  always = rows[small_world.ALWAYS]
  assert always['simulation_reason'] == 'constant_truth'
  assert always['detection_reason'] == 'fires_everywhere'


def test_a_wrong_explanation_scores_nothing(world, tmp_path):
  def other_token(body):
    if chat_server.task(body) == 'explain':
      number = int(re.search(r'token t(\d+)', chat_server.honest(body))[1])
      return f'Active on the token t{20 + number % 20}.'
    return chat_server.honest(body)

  rows = run(world, Model(other_token), tmp_path / 'answers')
  asked = [small_world.TOKEN, small_world.OTHER, *range(6, 18)]
  simulated = [rows[i]['simulation'] for i in asked]
  assert abs(np.mean(simulated)) < 0.05
  assert max(map(abs, simulated)) < 0.15
  # Half of the marks are wrong, and to say so of all is half right; a random
  # mark is where it is said to be once in forty.
  fuzzed = [rows[i]['fuzzing'] for i in asked]
  assert 0.35 < np.mean(fuzzed) <= 0.5
  assert max(fuzzed) <= 0.5
  assert 0.3 < np.mean([rows[i]['detection'] for i in asked]) < 0.7


def graded(token):
  return 0 if token % 3 else 1 + token % 7


def test_a_perfect_simulator_is_near_one_and_a_shuffled_one_near_none(
  tmp_path,
):
  rng = np.random.default_rng(0)
  tokens_NL = rng.integers(60, size=(40, 64))
  f_NL = np.vectorize(graded)(tokens_NL) * 0.37
  records = written_records.write(
    tmp_path / 'records', tokens_NL, f_NL[None], window=32, top=30
  )
  choice = cases.Choice(scoring=20, background=20)

  def answer(body, is_shuffled=False):
    if chat_server.task(body) == 'explain':
      return 'Active on multiples of three.'
    numbers = [int(t.strip(' t')) for t in chat_server.tokens(body)]
    steps = [round(10 * graded(n) / 7) for n in numbers]
    return chat_server.numbered(
      np.random.default_rng(numbers[:2]).permutation(steps).tolist()
      if is_shuffled
      else steps
    )

  scores = {}
  for is_shuffled in (False, True):
    model = Model(lambda body, s=is_shuffled: answer(body, s))
    path = tmp_path / f'answers {is_shuffled}'
    (row,) = run(records, model, path, ('simulation',), choice).values()
    scores[is_shuffled] = row['simulation']
  # Rounding to eleven steps is all that a perfect one loses.
  assert 0.99 < scores[False] < 1
  # Of 500 tokens and more, a chance correlation's deviation is below 0.045.
  assert abs(scores[True]) < 4 * 0.045


def test_one_who_says_the_same_everywhere_scores_nothing(world, tmp_path):
  def silent(body):
    kind = chat_server.task(body)
    if kind == 'simulate':
      return chat_server.numbered([0] * len(chat_server.tokens(body)))
    if kind in ('detect', 'fuzz'):
      return chat_server.numbered([1] * len(chat_server.pieces(body)))
    return chat_server.honest(body)

  row = run(world, Model(silent), tmp_path / 'a')[small_world.TOKEN]
  assert row['simulation'] == 0
  assert (row['detection'], row['fuzzing']) == (0.5, 0.5)


def test_the_explainer_never_sees_what_is_scored(world, tmp_path):
  shown, scored = {}, {}

  def watching(body):
    text = chat_server.question(body)
    if chat_server.task(body) == 'explain':
      for piece in chat_server.pieces(body):
        plain = re.sub(r'<<( t\d+)>>\(\d+\)', r'\1', piece)
        shown.setdefault(chat_server.honest(body), []).append(
          plain.split('\n')[0]
        )
    elif chat_server.task(body) == 'simulate':
      token = re.search(r'What is known of the unit: (.*)', text)[1]
      scored.setdefault(token, []).append(''.join(chat_server.tokens(body)))
    return chat_server.honest(body)

  run(world, Model(watching), tmp_path / 'a', ('simulation',))
  for explanation in ('Active on the token t3.', 'Active on the token t7.'):
    assert len(shown[explanation]) >= 2
    assert len(scored[explanation]) >= 6
    assert not set(shown[explanation]) & set(scored[explanation])


def harmful(body, count):
  """Answers of a server that fails in another way for each latent."""
  kind, text = chat_server.task(body), chat_server.question(body)
  answer = chat_server.honest(body)
  told = re.search(r'the token t(\d+)', text if kind != 'explain' else answer)
  token = int(told[1])
  if kind == 'explain':
    return {
      MUTE: Reply(refusal='I cannot help with that.'),
      DROPPED: Reply(drop=True),
    }.get(token, answer)
  if kind != 'simulate':
    return answer
  wrong = chat_server.numbered([0] * 3)
  return {
    SLOW: Reply(answer, delay_s=3.5),
    BUSY: Reply('busy', status=429, headers={'Retry-After': '0.01'}),
    BROKEN: '{"1": 0, "2": ',
    COUNTS_WRONG: wrong,
    REPAIRED: wrong if len(body['messages']) == 2 else answer,
    CUT: Reply(answer[:20], finish_reason='length'),
  }.get(token, answer)


def through_server(records, server, path):
  async def go():
    settings = chat.Limits(
      concurrency=32, retries=1, backoff_s=0.01, timeout_s=2.0
    )
    async with chat.Chat(server.url, 'm', limits=settings) as reader:
      ask = asking.Asker(reader, cache_lib.Cache(path))
      setting = study.Setting(study.MEASURES, records.pieces)
      rows = await study.run(
        cases.load(records, CHOICE), setting, ask, total=1, at_a_time=8
      )
      return {row['latent']: row for row in rows}, ask.spent

  return asyncio.run(go())


def test_every_latent_ends_with_a_score_or_a_reason(world, tmp_path):
  with chat_server.Server(harmful) as server:
    rows, spent = through_server(world, server, tmp_path / 'answers')
    check_all_end(rows)
    # Latents 6, 7, … fire at tokens 8, 9, …
    why = {t: rows[t - 2]['simulation_reason'] for t in range(8, 20)}
    assert why == {
      8: None, 9: None, 10: None, 19: None, REPAIRED: None,
      SLOW: 'time_out', BUSY: 'rate_limited', BROKEN: 'malformed_answer',
      MUTE: 'refusal', COUNTS_WRONG: 'malformed_answer',
      CUT: 'truncated_answer', DROPPED: 'no_connection',
    }  # fmt: skip
    assert rows[REPAIRED - 2]['simulation'] == pytest.approx(1)
    # Where only the simulation fails the rest is scored.
    for token in (SLOW, BUSY, BROKEN, COUNTS_WRONG, CUT):
      assert rows[token - 2]['detection'] == 1
    for token in (MUTE, DROPPED):
      assert rows[token - 2]['detection_reason'] == why[token]
      assert rows[token - 2]['token_lookup'] == pytest.approx(1, abs=0.01)
    complaint = rows[COUNTS_WRONG - 2]['detail']
    assert complaint.startswith('malformed_answer: it has 3 entries')
    asked = len(server.requests)
    again, spent_again = through_server(world, server, tmp_path / 'answers')
    assert len(server.requests) == asked
    assert again == rows
    assert spent.requests > 100
    assert spent_again == asking.Spent()


def test_an_estimate_counts_the_requests_to_come(world, tmp_path):
  setting = study.Setting(study.MEASURES, world.pieces)
  cache = cache_lib.Cache(tmp_path / 'answers')
  counted = {}
  for name, reader in (
    ('estimate', asking.Estimator({'model': 'm'})),
    ('spent', Model(chat_server.honest)),
    ('nothing', asking.Estimator({'model': 'm'})),
  ):
    ask = asking.Asker(reader, cache, keeps=name == 'spent')
    found = cases.load(world, CHOICE)
    asyncio.run(study.run(found, setting, ask, total=1))
    counted[name] = ask.spent
  # 14 latents and the bigram's: an explanation, 10 simulations and one request
  # each for 12 pieces cut in two, and 6; ALWAYS is not detected or fuzzed.
  assert counted['spent'].requests >= 15 * (1 + 10 + 2 + 1)
  assert counted['estimate'].requests == counted['spent'].requests
  assert counted['nothing'].requests == 0
  assert counted['estimate'].tokens_in > 100 * counted['spent'].requests


def test_questions_fit_their_answers(world, tmp_path):
  class Limited(Model):
    async def answer(self, request):
      found = await super().answer(request)
      assert asking.num_tokens(found.text) <= request.max_tokens
      return found

  run(world, Limited(chat_server.honest), tmp_path / 'answers')


ORDER = f' t{small_world.PLANTED}'
DRAWN = cases.Choice(explaining=5, scoring=6, background=4, min_windows=2)


def shared_place(records):
  """A place in a background window to score on, at a token of no latent."""
  background = background_lib.Background(records.background(), DRAWN.seed)
  for index in background.scoring:
    window = background._windows[index]
    for offset, token in enumerate(window.tokens_L):
      if token >= 28:
        return window.sequence, window.start + offset
  raise AssertionError('no place')


def has_order(windows):
  return any(small_world.PLANTED in window.tokens_L for window in windows)


def test_a_text_that_gives_orders_reaches_no_more_than_the_page_says(tmp_path):
  """A judge who obeys it always, against one who never does."""
  make = functools.partial(
    small_world.make, more=20, window=8, background=240, sequences=60
  )
  place = shared_place(make(tmp_path / 'before'))
  records = make(tmp_path / 'records', planted=place)
  reached = []

  def obedient(body):
    answer, kind = chat_server.honest(body), chat_server.task(body)
    if ORDER not in chat_server.question(body):
      return answer
    told = re.search(r'the token (t\d+)', chat_server.question(body))
    reached.append((kind, told and told[1]))
    return answer.replace(': 0', ': 1') if told else 'Active on the token t0.'

  honest, spoiled = (
    run(records, Model(judge), None, choice=DRAWN)
    for judge in (chat_server.honest, obedient)
  )
  found = {case.latent: case for case in cases.load(records, DRAWN)}
  own, shared = set(), set()
  for latent, case in found.items():
    fires = [window for window in case.scoring if window.fires]
    shown = [*case.scoring, *case.silent[: len(fires)]]
    if has_order(case.explaining):
      own.add(latent)
    elif has_order(shown):
      shared.add(latent)
  # Who has it in no question is scored alike, to the last bit.
  changed = {m for m in found if honest[m] != spoiled[m]}
  assert changed <= own | shared
  assert changed & shared
  # Who only shares it keeps the explanation, and one request of each kind is
  # reached.
  for latent in shared:
    assert spoiled[latent]['explanation'] == honest[latent]['explanation']
  pairs = [pair for pair in reached if pair[1] != 't0']
  assert len(set(pairs)) == len(pairs)
  # 4 + about 6 of the 120 windows to score on: 10 in 120, of 24 latents 2.
  assert len(shared) <= 2 + 4 * 1.4
