"""Endpoints that send what no endpoint should, and secrets that stay secret."""

import asyncio
import functools
import json
import subprocess
import sys

from helpers import chat_server
from helpers import small_world
from helpers.chat_server import Reply
import pytest

from jumprelu_jax import errors
from jumprelu_jax.autointerp import answers
from jumprelu_jax.autointerp import asking
from jumprelu_jax.autointerp import cache as cache_lib
from jumprelu_jax.autointerp import chat
from jumprelu_jax.autointerp import requests
from jumprelu_jax.autointerp.requests import Request

QUICK = {'retries': 1, 'timeout_s': 5.0, 'backoff_s': 0.0, 'max_wait_s': 5.0}
REQUEST = Request((('user', 'a question of five words'),), 9, 'typical')
SECRET = 'sk-4f9a-and-so-on'


def ask(server, cache, request=REQUEST, budget=None, **chat_values):
  """Asks one question by way of the disk; returns the asker."""

  async def run():
    limits = chat.Limits(**QUICK)
    async with chat.Chat(
      server.url, 'm', limits=limits, **chat_values
    ) as reader:
      asker = asking.Asker(reader, cache, budget)
      try:
        asker.answer = await asker(request)
      except Exception as error:
        asker.answer = error
      return asker

  return asyncio.run(run())


def completion(**values):
  """A response's body; what is named is not as the protocol has it."""
  message = {'role': 'assistant', 'content': values.pop('content', 'fine')}
  choice = {'index': 0, 'message': message, 'finish_reason': 'stop'}
  body = {
    'id': 'x', 'object': 'chat.completion', 'created': 0, 'model': 'm',
    'choices': [choice], 'usage': {'prompt_tokens': 7, 'completion_tokens': 3},
  } | values  # fmt: skip
  return Reply(body=json.dumps(body).encode())


def server_of(*some):
  return chat_server.Server(lambda _, count: some[min(count, len(some) - 1)])


@pytest.fixture(autouse=True)
def quick_clients(monkeypatch):
  """Loopback needs no certificates, whose reading takes most of a test."""
  quick = functools.partial(chat.openai.DefaultAsyncHttpxClient, verify=False)
  monkeypatch.setattr(chat.openai, 'DefaultAsyncHttpxClient', quick)


@pytest.fixture
def cache(tmp_path):
  opened = cache_lib.Cache(tmp_path / 'answers.sqlite')
  yield opened
  opened.close()


# Keys.


@pytest.mark.parametrize(
  ('key', 'said'),
  [
    (f'{SECRET}\r', 'character 18 of 18 is U+000D'),
    (f'{SECRET}\r\n', 'U+000D'),
    (f' {SECRET}', 'character 1 of 18 is U+0020'),
    (f'{SECRET}\n', 'U+000A'),
    (f'\ufeff{SECRET}', 'U+FEFF'),
    (f'{SECRET}\u2019', 'U+2019'),
    (f'sk\t{SECRET}', 'U+0009'),
    ('\r\n', 'U+000D'),
  ],
)
def test_a_key_that_cannot_be_sent_is_refused_before_anything(
  monkeypatch, key, said
):
  monkeypatch.setenv('OPENAI_API_KEY', key)
  with pytest.raises(errors.InputError, match='OPENAI_API_KEY') as found:
    chat.Chat('http://127.0.0.1:1/v1', 'm')
  assert said in str(found.value)
  assert SECRET not in str(found.value)


def test_a_key_in_the_wrong_place_is_refused(monkeypatch):
  monkeypatch.setenv('A_KEY', SECRET)
  for values in (
    {'parameters': {'key': SECRET}},
    {'model': SECRET},
    {'endpoint': f'http://127.0.0.1:1/{SECRET}/v1'},
    {'key_variable': SECRET},
  ):
    given = {'endpoint': 'http://127.0.0.1:1/v1', 'model': 'm'}
    given |= {'key_variable': 'A_KEY'} | values
    with pytest.raises(errors.InputError) as found:
      chat.Chat(**given)
    assert SECRET not in str(found.value)


@pytest.mark.parametrize(
  'reply',
  [
    Reply(f'bad {SECRET}', status=400),
    Reply(f'bad {SECRET[:9]}', status=422),
    Reply(f'bad {SECRET}', status=500),
    Reply(body=f'<b>{SECRET}</b>'.encode()),
    Reply(body=f'{{"choices": "{SECRET}"}}'.encode()),
    Reply(status=429, headers={'Retry-After': '9999'}, body=SECRET.encode()),
    Reply(drop=True),
  ],
)
def test_what_an_endpoint_says_of_a_failure_is_not_kept(
  monkeypatch, tmp_path, cache, reply
):
  monkeypatch.setenv('OPENAI_API_KEY', SECRET)
  with server_of(reply) as server:
    asker = ask(server, cache)
  assert asker.answer.reason
  kept = (tmp_path / 'answers.sqlite').read_bytes()
  for said in (str(asker.answer).encode(), kept):
    assert SECRET[:9].encode() not in said


class LeakingError(Exception):
  pass


@pytest.mark.parametrize('wrapped', [True, False])
def test_nor_what_an_exception_says(monkeypatch, tmp_path, cache, wrapped):
  """An HTTP library has put the header that it rejects into its message."""
  leaking = LeakingError(f'Illegal header value {SECRET}')

  async def send(*_, **__):
    if not wrapped:
      raise leaking
    request = chat.openai.DefaultAsyncHttpxClient().build_request('GET', 'a')
    raise chat.openai.APIConnectionError(request=request) from leaking

  completions = chat.openai.resources.chat.completions.AsyncCompletions
  monkeypatch.setattr(completions, 'create', send)
  with server_of(completion()) as server:
    answer = ask(server, cache).answer
  assert answer.reason == ('no_connection' if wrapped else 'bad_protocol')
  assert answer.detail == 'LeakingError'
  assert SECRET.encode() not in (tmp_path / 'answers.sqlite').read_bytes()


@pytest.mark.parametrize('status', [401, 403, 404])
def test_nor_is_it_printed_where_the_run_ends(monkeypatch, cache, status):
  monkeypatch.setenv('OPENAI_API_KEY', SECRET)
  with server_of(Reply(f'no {SECRET[:9]}', status=status)) as server:
    found = ask(server, cache).answer
  assert isinstance(found, errors.InputError)
  assert f'answers {status}: ' in str(found)
  assert SECRET[:9] not in str(found)


def test_details_of_earlier_versions_are_forgotten(tmp_path):
  """They were the exceptions' texts."""
  path = tmp_path / 'answers.sqlite'
  old = cache_lib.sqlite3.connect(path)
  table = cache_lib._TABLE.replace(',\n  checksum TEXT NOT NULL', '')
  old.execute(table)
  row = ('key', 'q', '', 'no_connection', f'Illegal header {SECRET}', 0, 0)
  old.execute('INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)', row)
  old.execute("INSERT INTO answers VALUES ('b', 'q', 'yes', '', '', 5, 6)")
  old.commit()
  old.close()
  opened = cache_lib.Cache(path)
  assert opened.get('key') == requests.Answer(reason='no_connection')
  assert opened.get('b') == requests.Answer('yes', tokens_in=5, tokens_out=6)
  opened.put('c', 'q', requests.Answer('new'))
  assert opened.get('c').text == 'new'
  assert opened.spent() == (3, 5, 6)


# Odd answers.

USAGES = {
  'null': None,
  'none': 'absent',
  'a string': 'many',
  'strings': {'prompt_tokens': '7', 'completion_tokens': '3'},
  'nulls': {'prompt_tokens': None, 'completion_tokens': None},
  'NaN': {'prompt_tokens': float('nan'), 'completion_tokens': float('inf')},
  'floats': {'prompt_tokens': 7.5, 'completion_tokens': 3.0},
  'negative': {'prompt_tokens': -7, 'completion_tokens': -3},
  'zero': {'prompt_tokens': 0, 'completion_tokens': 0},
  'huge': {'prompt_tokens': 10**30, 'completion_tokens': 2**63},
  'bools': {'prompt_tokens': True, 'completion_tokens': True},
  'a list': [7, 3],
  'other names': {'input_tokens': 7, 'output_tokens': 3},
}


@pytest.mark.parametrize('name', USAGES)
def test_tokens_are_estimated_where_they_are_not_told(cache, name):
  """By hand: 5 words, one of them in two parts, and 4 around a message."""
  reply = completion(usage=USAGES[name])
  if USAGES[name] == 'absent':
    body = json.loads(reply.body)
    del body['usage']
    reply = Reply(body=json.dumps(body).encode())
  with server_of(reply) as server:
    asker = ask(server, cache)
    assert asker.answer == 'fine'
    assert asker.spent == asking.Spent(1, 6 + 4, 1)
    assert ask(server, cache).answer == 'fine'  # from the disk
  assert len(server.requests) == 1
  assert cache.spent() == (1, 10, 1)


def test_told_tokens_are_taken(cache):
  with server_of(completion()) as server:
    assert ask(server, cache).spent == asking.Spent(1, 7, 3)


CONTENTS = {
  'half a pair': ('a\ud800b', 'a\ufffdb'),
  'the other half': ('\udfff!', '\ufffd!'),
  'a whole pair': ('🙂', '🙂'),
  'NUL': ('a\x00b', 'a\x00b'),
  'a list': (['a'], 'bad_protocol'),
  'a number': (5, 'bad_protocol'),
  'an object': ({'text': 'a'}, 'bad_protocol'),
  'null': (None, 'empty_answer'),
}


@pytest.mark.parametrize('name', CONTENTS)
def test_odd_texts_are_kept_or_have_a_reason(cache, name):
  content, want = CONTENTS[name]
  with server_of(completion(content=content)) as server:
    for _ in range(2):
      answer = ask(server, cache).answer
      assert getattr(answer, 'reason', answer) == want
  tries = 2 if want == 'bad_protocol' else 1
  assert len(server.requests) == tries  # and none when it is given again


@pytest.mark.parametrize(
  'body',
  [
    b'[' * 200_000,
    b'{"choices": ' + b'[' * 200_000 + b']' * 200_000 + b'}',
    b'{"choices": [{"message": {"content": "x"}}], "usage": '
    + b'{"a":' * 100_000 + b'1' + b'}' * 100_000 + b'}',
    b'\xff\xfe{}',
    b'{"choices": null}',
    b'{"choices": [{"message": null}]}',
    b'{"choices": {"0": 1}}',
    b'null',
    b'',
  ],
  ids=range(9),
)  # fmt: skip
def test_odd_bodies_have_a_reason(cache, body):
  with server_of(Reply(body=body)) as server:
    for _ in range(2):
      assert ask(server, cache).answer.reason == 'bad_protocol'
  assert len(server.requests) == 2


@pytest.mark.parametrize(
  'value',
  ['[' * 100_000 + ']' * 100_000, 'NaN', '1e999', '9' * 5000, '"\\ud800"',
   '"' + 'x' * 9999 + '"', 'null', 'true', '1.0'],
  ids=range(9),
)  # fmt: skip
def test_odd_numbers_are_malformed(value):
  with pytest.raises(answers.MalformedError) as found:
    answers.numbers(f'{{"1": {value}}}', 1, 10)
  assert len(str(found.value)) < 200


@pytest.mark.parametrize(
  'value', ['Mon, 99 Foo 9999', 'inf', '-inf', 'nan', '1e999', '(', '-5', '٣']
)
def test_odd_times_to_retry_after(cache, value):
  value = value.encode().decode('latin-1')
  reply = Reply(status=503, headers={'Retry-After': value})
  with server_of(reply, completion()) as server:
    answer = ask(server, cache).answer
  assert getattr(answer, 'reason', answer) in ('fine', 'server_error')


@pytest.mark.parametrize('status', [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(cache, status):
  with server_of(completion()) as other:
    there = Reply(status=status, headers={'Location': f'{other.url}/chat'})
    with server_of(there) as server:
      found = ask(server, cache).answer
  assert isinstance(found, errors.InputError)
  assert f'answers {status}, a redirect' in str(found)
  assert len(server.requests) == 1
  assert not other.requests


# The budget.


def test_the_limit_is_of_all_runs_with_a_cache(cache):
  """Each question costs 7 + 3 tokens, at a price of a million: 10."""
  budget = asking.Budget(1e6, 1e6, most=25.0)

  def question(number):
    return Request((('user', f'question {number}'),), 9, 'typical')

  with server_of(completion()) as server:
    for number in range(3):  # each a run of its own
      assert ask(server, cache, question(number), budget).answer == 'fine'
    refused = ask(server, cache, question(3), budget)
    assert isinstance(refused.answer, errors.InputError)
    assert '--max_cost=25 is spent, 30 of it before' in str(refused.answer)
    # What was paid for is there all the same.
    assert ask(server, cache, question(0), budget).answer == 'fine'
    more = asking.Budget(1e6, 1e6, most=35.0)
    assert ask(server, cache, question(3), more).answer == 'fine'
  assert len(server.requests) == 4


def test_the_limit_holds_where_no_usage_is_told(cache):
  budget = asking.Budget(1e6, 1e6, most=5.0)
  with server_of(completion(usage=None)) as server:
    assert ask(server, cache, budget=budget).answer == 'fine'
    other = Request((('user', 'x'),), 9, 'typical')
    refused = ask(server, cache, other, budget).answer
  assert isinstance(refused, errors.InputError)


def test_asking_again_adds_to_what_was_spent(tmp_path):
  path = tmp_path / 'answers.sqlite'
  cache = cache_lib.Cache(path, ['empty_answer'])
  with server_of(completion(content=''), completion()) as server:
    assert ask(server, cache).answer.reason == 'empty_answer'
    assert ask(server, cache).answer == 'fine'
  assert cache.spent() == (1, 14, 6)


@pytest.mark.slow  # the command twice
def test_the_command_counts_what_was_spent_before(tmp_path):
  small_world.make(tmp_path / 'records')

  def score(server, seed, *flags):
    return subprocess.run(
      [sys.executable, '-m', 'experiments.autointerp', 'score',
       f'--records={tmp_path / "records"}', f'--out={tmp_path / "out"}',
       '--measures=detection', '--latents=2', f'--seed={seed}',
       f'--endpoint={server.url}', '--model=m', '--price_in=1',
       '--price_out=1', *flags],
      capture_output=True, text=True, timeout=300,
    )  # fmt: skip

  with chat_server.Server(lambda body, _: chat_server.honest(body)) as server:
    first = score(server, 0)
    assert first.returncode == 0, first.stderr
    asked = len(server.requests)
    same = score(server, 0, '--max_cost=0.0000001')  # asks nothing
    assert same.returncode == 0, same.stderr
    other = score(server, 5, '--max_cost=0.0001')
  assert other.returncode == 2
  assert 'that the answers in the cache have cost' in other.stderr
  assert len(server.requests) == asked
