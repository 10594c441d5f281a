"""Answers of language models, read strictly."""

from __future__ import annotations

import json
import re

from jumprelu_jax.autointerp import reasons

_MAX_LETTERS = 600  # of an explanation of one sentence, and some
_MAX_COMPLAINT = 80  # of what is wrong with an answer
_THOUGHT = re.compile(r'^\s*<think>.*?</think>', re.DOTALL)
_OBJECT = re.compile(r'\{[^{}]*\}')
# How models begin when they will not.
_REFUSAL = re.compile(
  r"^\W*(i['’]m (very )?sorry|i am sorry|sorry,|as an ai|"
  r"i (can(no|['’])t|can not|won['’]t)|i( am|['’]m) (unable|not able) to)",
  re.IGNORECASE,
)


class MalformedError(ValueError):
  """An answer is not what was asked for; says what is wrong with it."""


def explanation(text: str) -> str:
  """Returns the one sentence that was asked for.

  Raises:
    MalformedError: it is something else.
    reasons.Unscored: the model refuses.
  """
  text = _said(text)
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  if not lines:
    raise MalformedError('there is no sentence in it')
  if len(lines[0]) > _MAX_LETTERS:
    raise MalformedError(
      f'it has {len(lines[0])} letters, not one short sentence'
    )
  return lines[0]


def numbers(text: str, count: int, largest: int) -> list[int]:
  """Returns numbers from a JSON object {"1": n, "2": n, …}.

  Args:
    text: the answer; a fence or a word around the object does no harm.
    count: how many there must be.
    largest: from 0 to this.

  Raises:
    MalformedError: it is something else.
    reasons.Unscored: the model refuses.
  """
  text = _said(text)
  found = _OBJECT.findall(text)
  if len(found) != 1:
    raise MalformedError(f'it has {len(found)} JSON objects, not one')
  try:
    entries = json.loads(found[0], object_pairs_hook=list)
  except (ValueError, RecursionError) as error:
    said = str(error)[:_MAX_COMPLAINT]
    raise MalformedError(f'it is not JSON ({said})') from error
  names = [name for name, _ in entries]
  if names != [str(number) for number in range(1, count + 1)]:
    raise MalformedError(
      f'it has {len(names)} entries; there must be {count}, named 1 to {count} '
      'in order'
    )
  values = [value for _, value in entries]
  for value in values:
    if type(value) is not int or not 0 <= value <= largest:
      said = json.dumps(value)[:_MAX_COMPLAINT]
      raise MalformedError(f'{said} is not a whole number from 0 to {largest}')
  return values


def _said(text):
  """Returns an answer without what it thought; Unscored if it refuses."""
  text = _THOUGHT.sub('', text)
  if _REFUSAL.match(text):
    raise reasons.Unscored('refusal', text.strip()[:100])
  return text
