"""Asking: from the disk where it was asked before, and within a budget."""

from __future__ import annotations

import asyncio
import dataclasses
import re

from jumprelu_jax import errors
from jumprelu_jax import progress
from jumprelu_jax.autointerp import cache as cache_lib
from jumprelu_jax.autointerp import reasons
from jumprelu_jax.autointerp import requests
from jumprelu_jax.autointerp.requests import Answer
from jumprelu_jax.autointerp.requests import Request

# Words, marks and line ends: rather more pieces than tokenizers make of a text.
_PIECES = re.compile(r'\w{1,6}|[^\w\s]|\n')
_MESSAGE_TOKENS = 4  # around a message


@dataclasses.dataclass
class Spent:
  """What was asked and not on the disk.

  Attributes:
    requests: how many.
    tokens_in: of the questions.
    tokens_out: of the answers.
  """

  requests: int = 0
  tokens_in: int = 0
  tokens_out: int = 0

  def add(self, answer: Answer) -> None:
    """Adds a request."""
    self.requests += 1
    self.tokens_in += answer.tokens_in
    self.tokens_out += answer.tokens_out


@dataclasses.dataclass(frozen=True)
class Budget:
  """What it may cost.

  Attributes:
    price_in: money for a million tokens of questions.
    price_out: money for a million tokens of answers.
    most: money that may be spent; None is any.
  """

  price_in: float = 0.0
  price_out: float = 0.0
  most: float | None = None

  def __post_init__(self):
    # Also where one is NaN.
    if not all(n >= 0 for n in (self.price_in, self.price_out, self.most or 0)):
      raise errors.InputError(
        f'{self}: expected prices and a limit of 0 or more.'
      )
    if self.most is not None and not self.price_in + self.price_out:
      raise errors.InputError(
        f'--max_cost={self.most} without prices; give --price_in and '
        '--price_out, for a million tokens.'
      )

  def cost(self, spent: Spent) -> float:
    """Returns what was spent, in the prices' currency."""
    money = spent.tokens_in * self.price_in + spent.tokens_out * self.price_out
    return money / 1e6


class Estimator:
  """Answers every request as is typical, and counts; a `requests.Reader`."""

  def __init__(self, identity):
    """Takes the identity of the reader that it stands for."""
    self.identity = identity

  async def answer(self, request: Request) -> Answer:
    """Returns the typical answer, with tokens estimated from letters."""
    return Answer(
      request.typical,
      tokens_in=question(request),
      tokens_out=min(num_tokens(request.typical), request.max_tokens),
    )


def question(request: Request) -> int:
  """Returns about how many tokens a request has."""
  return sum(
    _MESSAGE_TOKENS + num_tokens(content) for _, content in request.messages
  )


def num_tokens(text: str) -> int:
  """Returns about how many tokens a text has, rather too many than too few."""
  return len(_PIECES.findall(text))


class Asker:
  """Asks a reader, each question once.

  Attributes:
    spent: of what was not on the disk.
  """

  def __init__(
    self,
    reader: requests.Reader,
    cache: cache_lib.Cache,
    budget: Budget | None = None,
    *,
    keeps: bool = True,
  ):
    """Takes a reader and where answers are kept.

    Args:
      reader: a model.
      cache: looked into first.
      budget: prices; the run ends when the budget's most is spent, counting
        what the answers in the cache have cost before.
      keeps: whether answers are put into the cache; if not, like questions
        are asked again too.
    """
    self._reader, self._cache, self._keeps = reader, cache, keeps
    self._budget = budget or Budget()
    self._under_way = {}
    self._before = Spent(*cache.spent())
    self.spent = Spent()

  async def __call__(self, request: Request) -> str:
    """Returns the answer's text.

    Raises:
      reasons.Unscored: there is none.
      errors.InputError: the budget is spent, or nothing will be answered.
    """
    key = requests.key(self._reader.identity, request)
    answer = self._cache.get(key)
    if answer is None:
      if key not in self._under_way or not self._keeps:
        task = asyncio.ensure_future(self._pay(key, request))
        self._under_way[key] = task
      answer = await self._under_way[key]
    if answer.reason:
      raise reasons.Unscored(answer.reason, answer.detail)
    return answer.text

  def cost(self) -> float:
    """Returns what was spent, by earlier runs with this cache too."""
    return self._budget.cost(self._before) + self._budget.cost(self.spent)

  async def _pay(self, key, request):
    most = self._budget.most
    try:
      if most is not None and self.cost() >= most:
        before = self._budget.cost(self._before)
        raise errors.InputError(
          f'--max_cost={most:g} is spent, {before:.4g} of it before; what was '
          'answered is kept. Give the same command with a higher one to resume.'
        )
      answer = await self._reader.answer(request)
      self.spent.add(answer)
      if self._keeps:
        content = requests.content(self._reader.identity, request)
        self._cache.put(key, content, answer)
      return answer
    finally:
      self._under_way.pop(key, None)


def say(spent: Spent, budget: Budget, what: str) -> None:
  """Prints a line of what is, or was, spent."""
  money = ''
  if budget.price_in + budget.price_out:
    money = f', cost {budget.cost(spent):.4g}'
  progress.say(
    f'{what}: {spent.requests:,} requests, {spent.tokens_in:,} tokens in, '
    f'{spent.tokens_out:,} out{money}'
  )
