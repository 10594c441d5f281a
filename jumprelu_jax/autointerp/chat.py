"""Any endpoint that speaks OpenAI's chat completions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
import dataclasses
import datetime
import email.utils
import math
import os
import random
import time
from typing import Any
import urllib.parse

import openai

from jumprelu_jax import errors
from jumprelu_jax.autointerp.requests import Answer
from jumprelu_jax.autointerp.requests import Request

_DETAIL_LETTERS = 200
_NO_KEY = 'none'  # local servers ask for none, the client for something


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

  Used as `async with`. Whatever is said of a failure, the key is not in it.
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
      errors.InputError: the endpoint is no URL, or holds a secret.
    """
    _check_endpoint(endpoint)
    self._key = os.environ.get(key_variable) or _NO_KEY
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
    self._slots = asyncio.Semaphore(self._limits.concurrency)
    self._pace = _Pace(self._limits.per_minute)

  async def __aenter__(self):
    self._client = openai.AsyncOpenAI(
      api_key=self._key,
      base_url=self.identity['endpoint'],
      timeout=self._limits.timeout_s,
      max_retries=0,  # ours hold all requests back at once
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
          asked = f'asked to wait {wait_s:.0f} s; {failure.detail}'
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
      return _read(reply), None
    except (TimeoutError, openai.APITimeoutError):
      return Answer(reason='time_out'), 0.0
    except openai.APIStatusError as error:
      return self._of_status(error)
    except openai.APIConnectionError as error:
      return self._failure('no_connection', error.__cause__ or error), 0.0
    except (openai.OpenAIError, ValueError, TypeError, LookupError,
            AttributeError) as error:  # fmt: skip
      # A body that is no JSON, or not of the shape that the client expects.
      return self._failure('bad_protocol', error), 0.0

  def _of_status(self, error):
    """Returns what `_once` does, of an error of the endpoint's."""
    status, code = error.status_code, str(error.code or '')
    if status in (401, 403, 404) or code == 'insufficient_quota':
      said = self._clean(error)
      raise errors.InputError(
        f'{self.identity["endpoint"]} answers {status} ({said}); mend the key '
        f'in the environment variable {self._key_variable}, --model, '
        '--endpoint or the quota, and give the same command again: what was '
        'answered is kept.'
      ) from None
    if status == 429:
      return self._failure('rate_limited', error), _retry_after(error.response)
    if status in (408, 409) or status >= 500:
      return self._failure('server_error', error), _retry_after(error.response)
    if 'content_' in code:  # content_filter, content_policy_violation
      return self._failure('refusal', error), None
    if code == 'context_length_exceeded':
      return self._failure('prompt_too_long', error), None
    return self._failure('bad_request', error), None

  def _failure(self, reason, error):
    return Answer(reason=reason, detail=self._clean(error))

  def _clean(self, error):
    """Returns what an error says, without the key, in one short line."""
    said = ' '.join(str(error).split())
    if self._key != _NO_KEY:
      said = said.replace(self._key, '***')
    return said[:_DETAIL_LETTERS]


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


def _read(reply):
  """Returns the answer of a reply."""
  usage = reply.usage
  spent = {
    'tokens_in': usage.prompt_tokens if usage else 0,
    'tokens_out': usage.completion_tokens if usage else 0,
  }
  choice = reply.choices[0]
  text = choice.message.content or ''
  refusal = getattr(choice.message, 'refusal', None)
  if refusal or choice.finish_reason == 'content_filter':
    detail = str(refusal or 'content filter')[:_DETAIL_LETTERS]
    return Answer(reason='refusal', detail=detail, **spent)
  if choice.finish_reason == 'length':
    return Answer(reason='truncated_answer', **spent)
  if not text.strip():
    return Answer(reason='empty_answer', **spent)
  return Answer(text, **spent)


def _retry_after(response):
  """Returns the seconds that a response says to wait, 0 if it does not."""
  value = response.headers.get('retry-after', '')
  try:
    seconds = float(value)
  except ValueError:
    try:
      when = email.utils.parsedate_to_datetime(value)
    except ValueError:
      return 0.0
    if when.tzinfo is None:
      when = when.replace(tzinfo=datetime.UTC)
    seconds = (when - datetime.datetime.now(datetime.UTC)).total_seconds()
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
