"""Any endpoint that speaks OpenAI's chat completions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
import dataclasses
import datetime
import email.utils
import functools
import json
import math
import os
import random
import re
import time
from typing import Any
import urllib.parse

import openai

from jumprelu_jax import errors
from jumprelu_jax.autointerp import asking
from jumprelu_jax.autointerp.requests import Answer
from jumprelu_jax.autointerp.requests import Request

_DETAIL_LETTERS = 200
_NO_KEY = 'none'  # local servers ask for none, the client for something
_VARIABLE = re.compile(r'[A-Za-z_]\w*', re.ASCII)
_SURROGATE = re.compile('[\ud800-\udfff]')
_MOST_TOKENS = 10**9  # of one request; more is no count
_STATUS = {
  401: 'it does not accept the key',
  403: 'the key may not do this',
  404: 'there is no such address or model',
}


@dataclasses.dataclass(frozen=True)
class Limits:
  """How hard an endpoint is asked.

  Attributes:
    concurrency: requests under way at a time.
    per_minute: requests started in a minute, evenly; 0 is no limit.
    retries: of a request that failed for a while.
    timeout_s: that an answer may take.
    backoff_s: wait before the first retry; it doubles with each, less a random
      part of up to a half. A longer Retry-After is obeyed, by all requests.
    max_wait_s: of a wait; who is told to wait longer gives up.
  """

  concurrency: int = 8
  per_minute: float = 0.0
  retries: int = 6
  timeout_s: float = 120.0
  backoff_s: float = 1.0
  max_wait_s: float = 120.0

  def __post_init__(self):
    errors.check_least(1, {'concurrency': self.concurrency})
    rest = {k: v for k, v in vars(self).items() if k != 'timeout_s'}
    errors.check_least(0, rest)
    if not self.timeout_s > 0:
      raise errors.InputError(
        f'timeout_s={self.timeout_s}: expected more than 0.'
      )


class Chat:
  """A model behind an endpoint; a `requests.Reader`.

  Used as `async with`. What is said of a failure is the reason, the status and
  the kind of error, in words of our own: what the endpoint or an exception says
  may repeat the key.
  """

  def __init__(
    self,
    endpoint: str,
    model: str,
    *,
    key_variable: str = 'OPENAI_API_KEY',
    parameters: Mapping[str, Any] | None = None,
    limit_name: str = 'max_tokens',
    limits: Limits | None = None,
  ):
    """Checks what is given; asks nothing yet.

    Args:
      endpoint: base URL, such as http://127.0.0.1:8000/v1.
      model: its name there.
      key_variable: environment variable that holds the key; unset is none.
      parameters: of every request; temperature 0 by default.
      limit_name: the parameter that limits an answer's length; some models call
        it max_completion_tokens.
      limits: how hard to ask.

    Raises:
      errors.InputError: the endpoint is no URL, or holds a secret; the key is
        none that can be sent.
    """
    _check_endpoint(endpoint)
    self._key = _read_key(key_variable)
    self._key_variable = key_variable
    self._parameters = dict(
      {'temperature': 0} if parameters is None else parameters
    )
    self._limit_name, self._limits = limit_name, limits or Limits()
    self.identity = {
      'endpoint': endpoint.rstrip('/'),
      'model': model,
      'parameters': self._parameters,
      'limit_name': limit_name,
    }
    if self._key != _NO_KEY and self._key in json.dumps(self.identity):
      raise errors.InputError(
        f'the key in {key_variable} is also in --endpoint, --model or '
        '--parameters, which are written down; remove it there.'
      )
    self._slots = asyncio.Semaphore(self._limits.concurrency)
    self._pace = _Pace(self._limits.per_minute)

  async def __aenter__(self):
    self._client = openai.AsyncOpenAI(
      api_key=self._key,
      base_url=self.identity['endpoint'],
      timeout=self._limits.timeout_s,
      max_retries=0,  # ours hold all requests back at once
      # A redirect would carry the key and the prompts to another host.
      http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
    )
    return self

  async def __aexit__(self, *_):
    await self._client.close()

  async def answer(self, request: Request) -> Answer:
    """Returns the answer, or why there is none after all retries.

    Raises:
      errors.InputError: nothing will be answered: the key, the model's name or
        the quota is at fault.
    """
    async with self._slots:
      for tried in range(self._limits.retries + 1):
        await self._pace.wait()
        failure, wait_s = await self._once(request)
        if wait_s is None:
          return failure
        if wait_s > self._limits.max_wait_s:
          asked = f'{failure.detail}, asked to wait {wait_s:.0f} s'
          return dataclasses.replace(failure, detail=asked)
        if tried < self._limits.retries:
          backoff_s = self._limits.backoff_s * 2**tried
          backoff_s = min(backoff_s, self._limits.max_wait_s)
          if failure.reason == 'rate_limited':
            self._pace.hold(wait_s)  # the others would only be refused too
          await asyncio.sleep(max(wait_s, backoff_s * random.uniform(0.5, 1)))
      return failure

  async def _once(self, request):
    """Returns an answer and None; or a passing failure and a wait, seconds."""
    try:
      # The client's own time-out begins anew with every byte.
      async with asyncio.timeout(self._limits.timeout_s):
        reply = await self._client.chat.completions.create(
          model=self.identity['model'],
          messages=[{'role': r, 'content': c} for r, c in request.messages],
          extra_body={**self._parameters, self._limit_name: request.max_tokens},
        )
      return _read(reply, request), None
    except (TimeoutError, openai.APITimeoutError):
      return Answer(reason='time_out'), 0.0
    except openai.APIStatusError as error:
      return self._of_status(error)
    except openai.APIConnectionError as error:
      return _failure('no_connection', error.__cause__ or error), 0.0
    except Exception as error:
      # A body that is no JSON, too deep, or not of the shape that is expected.
      return _failure('bad_protocol', error), 0.0

  def _of_status(self, error):
    """Returns what `_once` does, of an error of the endpoint's."""
    status, code = error.status_code, str(error.code or '')
    if 300 <= status < 400:
      raise errors.InputError(
        f'{self.identity["endpoint"]} answers {status}, a redirect, which is '
        'not followed: it could carry the prompts and the key to another host. '
        'Give the address that it leads to as --endpoint.'
      ) from None
    if status in (401, 403, 404) or code == 'insufficient_quota':
      raise errors.InputError(
        f'{self.identity["endpoint"]} answers {status}: '
        f'{_STATUS.get(status, "no quota is left")}. Correct the key in the '
        f'environment variable {self._key_variable}, --model, --endpoint or '
        'the quota, and give the same command again: what was answered is kept.'
      ) from None
    failure = functools.partial(Answer, detail=f'status {status}')
    if status == 429:
      return failure(reason='rate_limited'), _retry_after(error.response)
    if status in (408, 409) or status >= 500:
      return failure(reason='server_error'), _retry_after(error.response)
    if 'content_' in code:  # content_filter, content_policy_violation
      return failure(reason='refusal'), None
    if code == 'context_length_exceeded':
      return failure(reason='prompt_too_long'), None
    return failure(reason='bad_request'), None


class _Pace:
  """Lets requests start one after the other, and holds all of them back."""

  def __init__(self, per_minute):
    self._gap_s = 60 / per_minute if per_minute else 0.0
    self._next = 0.0
    self._turn = asyncio.Lock()

  async def wait(self):
    """Returns when it is the caller's turn."""
    async with self._turn:
      # Again after each sleep: meanwhile all may have been told to wait.
      while (rest_s := self._next - time.monotonic()) > 0:
        await asyncio.sleep(rest_s)
      self._next = time.monotonic() + self._gap_s

  def hold(self, seconds):
    """Starts nothing for a while."""
    self._next = max(self._next, time.monotonic() + seconds)


def _failure(reason, error):
  """Returns why there is no answer; of the error its kind alone."""
  return Answer(reason=reason, detail=type(error).__name__)


def _read(reply, request):
  """Returns the answer of a reply."""
  choice = reply.choices[0]
  # JSON may hold halves of surrogate pairs, which no file does.
  text = _SURROGATE.sub('\ufffd', choice.message.content or '')
  usage = reply.usage
  spent = {
    'tokens_in': _count(usage, 'prompt_tokens', asking.question(request)),
    'tokens_out': _count(usage, 'completion_tokens', asking.num_tokens(text)),
  }
  refusal = getattr(choice.message, 'refusal', None)
  if refusal or choice.finish_reason == 'content_filter':
    said = _SURROGATE.sub('\ufffd', str(refusal or 'content filter'))
    return Answer(reason='refusal', detail=said[:_DETAIL_LETTERS], **spent)
  if choice.finish_reason == 'length':
    return Answer(reason='truncated_answer', **spent)
  if not text.strip():
    return Answer(reason='empty_answer', **spent)
  return Answer(text, **spent)


def _count(usage, name, estimate):
  """Returns the tokens that were used; an estimate where nothing is said."""
  value = getattr(usage, name, None)
  is_count = type(value) is int and 0 < value <= _MOST_TOKENS
  return value if is_count else estimate


def _retry_after(response):
  """Returns the seconds that a response says to wait, 0 if it does not."""
  value = response.headers.get('retry-after', '')
  try:
    seconds = float(value)
  except ValueError:
    try:
      when = email.utils.parsedate_to_datetime(value)
      if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.UTC)
      seconds = (when - datetime.datetime.now(datetime.UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):
      return 0.0
  return max(seconds, 0.0) if not math.isnan(seconds) else 0.0


def _check_endpoint(endpoint):
  parts = urllib.parse.urlsplit(endpoint)
  if parts.scheme not in ('http', 'https') or not parts.hostname:
    raise errors.InputError(
      f'--endpoint={endpoint}: expected a base URL, such as '
      'http://127.0.0.1:8000/v1.'
    )
  if parts.username or parts.password or parts.query:
    raise errors.InputError(
      '--endpoint: a user, a password or a query could be a secret, and the '
      'endpoint is written down; give the key in an environment variable '
      '(--key_variable).'
    )


def _read_key(variable):
  """Returns the key of an environment variable; no error prints either."""
  if not _VARIABLE.fullmatch(variable):
    raise errors.InputError(
      '--key_variable: expected the name of an environment variable, such as '
      'OPENAI_API_KEY, not the key itself.'
    )
  key = os.environ.get(variable) or _NO_KEY
  for place, letter in enumerate(key, start=1):
    if not '!' <= letter <= '~':
      raise errors.InputError(
        f'the key in the environment variable {variable} cannot be sent: '
        f'character {place} of {len(key)} is U+{ord(letter):04X}; expected '
        'letters, digits and punctuation of ASCII. A file that Windows wrote '
        'has U+000D at the end of its lines; set the variable without it.'
      )
  return key
