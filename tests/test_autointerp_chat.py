"""Asking an endpoint: whatever it does, there is an answer or a reason."""

import asyncio
import email.utils
import time

from helpers import chat_server
from helpers.chat_server import Reply
import pytest

from jumprelu_jax import errors
from jumprelu_jax.autointerp import asking
from jumprelu_jax.autointerp import cache as cache_lib
from jumprelu_jax.autointerp import chat
from jumprelu_jax.autointerp import reasons
from jumprelu_jax.autointerp import requests
from jumprelu_jax.autointerp.requests import Request

QUICK = {'retries': 2, 'timeout_s': 5.0, 'backoff_s': 0.02, 'max_wait_s': 5.0}


def request(number=0, **values):
  said = {'messages': (('user', f'question {number}'),), 'max_tokens': 9}
  return Request(**{**said, 'typical': 'typical', **values})


def ask(server, *asked, **limits):
  """Asks a server at once; returns the answers."""

  async def run():
    settings = chat.Limits(**{**QUICK, **limits})
    async with chat.Chat(server.url, 'a-model', limits=settings) as reader:
      return await asyncio.gather(*map(reader.answer, asked or [request()]))

  return asyncio.run(run())


def replies(*some):
  """A server that gives these, and the last one again and again."""
  return chat_server.Server(lambda _, count: some[min(count, len(some) - 1)])


def test_a_request_is_what_the_protocol_asks_for(monkeypatch):
  monkeypatch.setenv('OPENAI_API_KEY', 'secret-key')
  with replies('an answer') as server:
    (answer,) = ask(server)
  assert answer == requests.Answer('an answer', tokens_in=100, tokens_out=10)
  (body,) = server.requests
  assert body == {
    'model': 'a-model',
    'messages': [{'role': 'user', 'content': 'question 0'}],
    'temperature': 0,
    'max_tokens': 9,
  }
  assert server.headers[0]['Authorization'] == 'Bearer secret-key'


def test_retry_after_is_obeyed_by_all():
  slow = Reply('slow down', status=429, headers={'Retry-After': '2'})
  with replies(slow, 'x') as server:

    async def run():
      limits = chat.Limits(**QUICK)
      async with chat.Chat(server.url, 'm', limits=limits) as reader:
        first = asyncio.ensure_future(reader.answer(request()))
        while not server.requests:
          await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)  # until the answer is there
        return await asyncio.gather(first, reader.answer(request(1)))

    answers = asyncio.run(run())
  assert [a.text for a in answers] == ['x', 'x']
  first, *later = server.times
  assert len(later) == 2
  assert all(t - first > 1.9 for t in later)


def test_a_date_to_retry_after_is_obeyed():
  def reply(_, count):
    date = email.utils.formatdate(time.time() + 2, usegmt=True)
    slow = Reply('slow down', status=429, headers={'Retry-After': date})
    return 'x' if count else slow

  with chat_server.Server(reply) as server:
    (answer,) = ask(server)
  assert answer.text == 'x'
  # The date has whole seconds.
  assert server.times[1] - server.times[0] > 0.9


def test_too_long_a_wait_is_not_waited_for():
  slow = Reply('tomorrow', status=429, headers={'Retry-After': '86400'})
  with replies(slow) as server:
    (answer,) = ask(server)
  assert answer.reason == 'rate_limited'
  assert 'asked to wait 86400 s' in answer.detail
  assert len(server.requests) == 1


@pytest.mark.parametrize(
  ('reply', 'reason'),
  [
    (Reply('busy', status=429), 'rate_limited'),
    (Reply('broken', status=500), 'server_error'),
    (Reply('broken', status=503), 'server_error'),
    (Reply('late', delay_s=1.5), 'time_out'),
    (Reply(drop=True), 'no_connection'),
    (Reply(body=b'<html>no</html>'), 'bad_protocol'),
    (Reply(body=b'{"choices": []}'), 'bad_protocol'),
    (Reply(body=b'{"choices": [{}]}'), 'bad_protocol'),
    (Reply(body=b'[]'), 'bad_protocol'),
  ],
  ids=lambda p: p if isinstance(p, str) else '',
)
def test_what_may_pass_is_tried_again_and_then_named(reply, reason):
  timeout_s = 0.5 if reason == 'time_out' else 20.0
  with replies(reply) as server:
    (answer,) = ask(server, timeout_s=timeout_s)
  assert answer.reason == reason
  assert reason in reasons.REASONS
  assert len(server.requests) == 3
  with replies(reply, reply, 'well again') as server:
    (answer,) = ask(server, timeout_s=timeout_s)
  assert answer.text == 'well again'


def error(status, code):
  body = f'{{"error": {{"message": "no", "type": "e", "code": "{code}"}}}}'
  return Reply(status=status, body=body.encode())


@pytest.mark.parametrize(
  ('reply', 'reason'),
  [
    (Reply(refusal='I will not.'), 'refusal'),
    (Reply('x', finish_reason='content_filter'), 'refusal'),
    (error(400, 'content_filter'), 'refusal'),
    (error(400, 'content_policy_violation'), 'refusal'),
    (error(400, 'context_length_exceeded'), 'prompt_too_long'),
    (error(422, 'other'), 'bad_request'),
    (Reply('half of', finish_reason='length'), 'truncated_answer'),
    (Reply(' '), 'empty_answer'),
  ],
  ids=lambda p: p if isinstance(p, str) else '',
)
def test_what_will_not_pass_is_not_tried_again(reply, reason):
  with replies(reply) as server:
    (answer,) = ask(server)
  assert answer.reason == reason
  assert reason in reasons.REASONS
  assert len(server.requests) == 1


@pytest.mark.parametrize(
  'reply',
  [
    Reply('the key secret-key is not valid', status=401),
    Reply('not with secret-key', status=403),
    Reply('no model', status=404),
    error(429, 'insufficient_quota'),
  ],
  ids=('key', 'rights', 'model', 'quota'),
)
def test_what_nothing_will_answer_ends_the_run(monkeypatch, reply):
  monkeypatch.setenv('OPENAI_API_KEY', 'secret-key')
  with (
    replies(reply) as server,
    pytest.raises(errors.InputError, match='OPENAI_API_KEY') as found,
  ):
    ask(server)
  assert 'secret-key' not in str(found.value)
  assert len(server.requests) == 1


def test_the_key_is_in_no_answer_and_no_file(monkeypatch, tmp_path):
  monkeypatch.setenv('A_KEY', 'secret-key')
  with replies(Reply('bad secret-key', status=400), 'x') as server:

    async def run():
      async with chat.Chat(server.url, 'm', key_variable='A_KEY') as reader:
        cache = cache_lib.Cache(tmp_path / 'answers')
        asker = asking.Asker(reader, cache)
        with pytest.raises(reasons.Unscored, match='bad_request: status 400'):
          await asker(request())
        assert await asker(request(1)) == 'x'
        cache.close()

    asyncio.run(run())
  assert server.headers[0]['Authorization'] == 'Bearer secret-key'
  kept = (tmp_path / 'answers').read_bytes()
  assert b'secret-key' not in kept
  assert b'question 1' in kept


def test_backoff_doubles():
  with replies(Reply(status=500)) as server:
    ask(server, retries=3, backoff_s=0.2)
  gaps = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
  # Up to a half is taken off by chance.
  for gap, least in zip(gaps, (0.1, 0.2, 0.4), strict=True):
    assert gap >= least


def test_requests_keep_to_the_rate():
  with replies('x') as server:
    ask(server, *map(request, range(6)), per_minute=120)
  assert len(server.requests) == 6
  # Five gaps of half a second; the first may have come late.
  assert server.times[-1] - server.times[0] > 1.5


def test_no_more_are_under_way_than_are_allowed():
  with replies(Reply('x', delay_s=0.1)) as server:
    ask(server, *map(request, range(12)), concurrency=3)
  assert server.most == 3
  assert len(server.requests) == 12


@pytest.mark.parametrize(
  ('endpoint', 'match'),
  [
    ('localhost:8000', 'expected a base URL'),
    ('ftp://host/v1', 'expected a base URL'),
    ('http://user:pass@host/v1', 'environment variable'),
    ('http://host/v1?api-key=1', 'environment variable'),
  ],
)
def test_bad_endpoints_are_named_without_their_secrets(endpoint, match):
  with pytest.raises(errors.InputError, match=match) as found:
    chat.Chat(endpoint, 'm')
  assert 'pass' not in str(found.value).replace('password', '')


@pytest.mark.parametrize(
  'limits',
  [{'concurrency': 0}, {'retries': -1}, {'timeout_s': 0.0},
   {'per_minute': -1.0}, {'backoff_s': float('nan')}],
)  # fmt: skip
def test_bad_limits_are_named(limits):
  with pytest.raises(errors.InputError, match=next(iter(limits))):
    chat.Limits(**limits)


# The disk, and the budget.


class Counting:
  """A reader that counts, and answers with the question."""

  def __init__(self, **identity):
    self.identity, self.count = {'model': 'm', **identity}, 0

  async def answer(self, request):
    self.count += 1
    await asyncio.sleep(0.01)
    if request.messages[0][1] == 'question 13':
      return requests.Answer(reason='time_out')
    text = request.messages[0][1]
    return requests.Answer(text, tokens_in=1000, tokens_out=100)


def all_of(asker, *asked):
  async def run():
    return await asyncio.gather(*map(asker, asked), return_exceptions=True)

  return asyncio.run(run())


def test_no_question_is_asked_twice(tmp_path):
  path = tmp_path / 'a' / 'answers.sqlite'
  first = Counting()
  asker = asking.Asker(first, cache_lib.Cache(path))
  got = all_of(asker, request(1), request(2), request(1), request(13))
  assert got[:3] == ['question 1', 'question 2', 'question 1']
  assert got[3].reason == 'time_out'
  assert first.count == 3
  assert asker.spent == asking.Spent(3, 2000, 200)
  # Another process, with the disk alone.
  second = Counting()
  again = asking.Asker(second, cache_lib.Cache(path))
  assert all_of(again, request(1), request(2)) == got[:2]
  assert all_of(again, request(13))[0].reason == 'time_out'
  assert second.count == 0
  # Unless it is to ask again.
  retrying = asking.Asker(second, cache_lib.Cache(path, ('time_out',)))
  all_of(retrying, request(1), request(13))
  assert second.count == 1


def test_a_full_disk_is_told_of_and_the_answers_before_it_are_kept(tmp_path):
  cache = cache_lib.Cache(tmp_path / 'answers.sqlite')
  cache.put('first', 'a question', requests.Answer('an answer'))
  (pages,) = cache._file.execute('PRAGMA page_count').fetchone()
  cache._file.execute(f'PRAGMA max_page_count = {pages}')
  long = requests.Answer('long ' * 10_000)
  with pytest.raises(errors.DiskFullError, match='answers.sqlite: no space'):
    cache.put('second', 'a question', long)
  assert cache.get('first').text == 'an answer'
  assert cache.get('second') is None
  cache._file.execute('PRAGMA max_page_count = 1000')
  cache.put('second', 'a question', long)
  assert cache.get('second') == long


@pytest.mark.parametrize(
  ('identity', 'values'),
  [
    ({'model': 'other'}, {}),
    ({'endpoint': 'other'}, {}),
    ({'parameters': {'temperature': 1}}, {}),
    ({}, {'max_tokens': 10}),
    ({}, {'messages': (('system', 'question 1'),)}),
  ],
)
def test_an_answer_is_to_its_own_question(tmp_path, identity, values):
  cache = cache_lib.Cache(tmp_path / 'answers.sqlite')
  all_of(asking.Asker(Counting(), cache), request(1))
  other = Counting(**identity)
  all_of(asking.Asker(other, cache), request(1, **values))
  assert other.count == 1
  # What is only expected is no part of it.
  all_of(asking.Asker(other, cache), request(1, **values, typical='other'))
  assert other.count == 1


def test_a_file_of_something_else_is_refused(tmp_path):
  path = tmp_path / 'answers.sqlite'
  path.write_text('not a database, and long enough to be seen as none' * 20)
  with pytest.raises(errors.InputError, match='give another --cache'):
    cache_lib.Cache(path)


def test_no_more_is_spent_than_allowed(tmp_path):
  reader = Counting()
  cache = cache_lib.Cache(tmp_path / 'answers.sqlite')
  # A request costs (1000 * 1 + 100 * 5) / 1e6 = 0.0015.
  budget = asking.Budget(price_in=1, price_out=5, most=0.004)
  asker = asking.Asker(reader, cache, budget)
  for number in range(3):
    all_of(asker, request(number))
  (stopped,) = all_of(asker, request(3))
  assert isinstance(stopped, errors.InputError)
  assert '--max_cost=0.004 is spent' in str(stopped)
  assert reader.count == 3
  assert budget.cost(asker.spent) == pytest.approx(0.0045)
  assert all_of(asker, request(2)) == ['question 2']  # paid already


def test_bad_budgets_are_named():
  with pytest.raises(errors.InputError, match='--price_in'):
    asking.Budget(most=1.0)
  with pytest.raises(errors.InputError, match='0 or more'):
    asking.Budget(price_in=-1.0)


def test_an_estimate_counts_words_and_marks():
  # Stray, lightl, y | { " : 1 , 22 }
  assert asking.num_tokens('Stray lightly {":1,22}') == 3 + 7
  estimate = asyncio.run(asking.Estimator({}).answer(request(typical='a b c')))
  # question is cut at six letters, and a message has four around it.
  assert (estimate.tokens_in, estimate.tokens_out) == (4 + 3, 3)
  assert estimate.text == 'a b c'
