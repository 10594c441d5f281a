"""What is asked of a language model, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import hashlib
import json
from typing import Any
from typing import Protocol


@dataclasses.dataclass(frozen=True)
class Request:
  """A question.

  Attributes:
    messages: (role, content), of a chat.
    max_tokens: the answer's, at most.
    typical: an answer such as is expected, for the estimate of costs.
    end: what ends an answer of a model that goes on and on.
  """

  messages: tuple[tuple[str, str], ...]
  max_tokens: int
  typical: str
  end: str = '\n'


@dataclasses.dataclass(frozen=True)
class Answer:
  """An answer, or why there is none.

  Attributes:
    text: as the model gave it.
    reason: of `reasons.REASONS`, where there is none; else ''.
    detail: of the reason.
    tokens_in: of the question, as the endpoint counts them.
    tokens_out: of the answer.
  """

  text: str = ''
  reason: str = ''
  detail: str = ''
  tokens_in: int = 0
  tokens_out: int = 0


class Reader(Protocol):
  """A language model that answers.

  Attributes:
    identity: what an answer depends on besides the request: endpoint, model,
      parameters. No secrets: it is kept.
  """

  identity: Mapping[str, Any]

  async def answer(self, request: Request) -> Answer:
    """Returns the answer, or a reason; raises InputError to end the run."""


def content(identity: Mapping[str, Any], request: Request) -> str:
  """Returns what an answer depends on, as JSON with one spelling."""
  whole = {
    **identity,
    'messages': request.messages,
    'max_tokens': request.max_tokens,
  }
  return json.dumps(whole, sort_keys=True, ensure_ascii=False)


def key(identity: Mapping[str, Any], request: Request) -> str:
  """Returns the name under which an answer is kept."""
  return hashlib.sha256(content(identity, request).encode()).hexdigest()
