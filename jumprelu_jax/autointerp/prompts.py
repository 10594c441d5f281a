"""Everything that is said to a language model, in one place.

An answer is kept under its whole question, so a change of words asks anew.
"""

from __future__ import annotations

from collections.abc import Sequence
import json

import numpy as np

from jumprelu_jax.autointerp.requests import Request
from jumprelu_jax.autointerp.windows import Window
from jumprelu_jax.text.pieces import Pieces

#: Of the words below; raise it with any change.
VERSION = 1
#: Activations are told in whole numbers from 0 to this.
STEPS = 10

_EXPLAIN = f"""\
A unit of a neural network that reads text is active at some tokens and silent \
at the rest. You will see pieces of text. Each token at which the unit is \
active is put between << and >>, and followed by how strongly, from 1 to \
{STEPS}, in parentheses. Find what the marked tokens have in common: the token \
itself, what it means, its grammatical role, or what comes before it. \
Unmarked tokens matter as much: at them the unit is silent.

Answer with one sentence, at most 30 words, that begins with "Active on" and \
says when the unit is active. Say nothing else.\
"""
_SIMULATE = f"""\
A unit of a neural network reads text token by token. You will be told when it \
is active, and be given the tokens of a piece of text, one on a line, with \
their numbers. Say for each token how active the unit is there, as a whole \
number from 0 (silent) to {STEPS} (as strong as it gets). A unit knows a token \
and those before it, not those after it. Most units are silent at most tokens.

Answer with a JSON object and nothing else. It has one entry for every token: \
the token's number, in quotes, and its activity. For three tokens: \
{{"1": 0, "2": 7, "3": 0}}\
"""
_DETECT = """\
A unit of a neural network reads text. You will be told when it is active, and \
be given pieces of text with their numbers. Say of each piece whether the unit \
is active anywhere in it: 1 if it is, 0 if it is silent all through.

Answer with a JSON object and nothing else. It has one entry for every piece. \
For three pieces: {"1": 0, "2": 1, "3": 0}\
"""
_FUZZ = """\
A unit of a neural network reads text. You will be told when it is active, and \
be given pieces of text with their numbers, in which some tokens are put \
between << and >>. In some pieces these are the tokens at which the unit is \
active, in others they are tokens taken at random. Say of each piece whether \
its marks are right: 1 if they are where the unit is active, 0 if not.

Answer with a JSON object and nothing else. It has one entry for every piece. \
For three pieces: {"1": 0, "2": 1, "3": 0}\
"""
_REPAIR = 'This cannot be used: {complaint}. Give the whole answer again.'
_TYPICAL = (
  'Active on nouns that name a place or an institution, above all at the last '
  'token of the name and after a preposition.'
)
_MAX_EXPLANATION_TOKENS = 120
_ENTRY_TOKENS = 12  # of `"123": 10,\n`, however it is cut up


def steps_of(activations_L: np.ndarray, largest: float) -> np.ndarray:
  """Returns activations as whole numbers 0 to STEPS, [L] of int.

  0 is where it does not fire and nothing else; `largest` and above is STEPS.
  """
  steps_L = np.rint(np.asarray(activations_L) / largest * STEPS)
  steps_L = np.where(activations_L > 0, steps_L.clip(1, STEPS), 0)
  return steps_L.astype(int)


def explain(windows: Sequence[Window], pieces: Pieces) -> Request:
  """Asks for an explanation of what fires in some windows."""
  largest = max(window.activations_L.max() for window in windows)
  shown = []
  for window in windows:
    steps_L = steps_of(window.activations_L, largest)
    marked = [
      f'<<{text}>>({step})' if step else text
      for text, step in _joined(pieces, window, steps_L)
    ]
    shown.append(''.join(marked))
  user = f'{_numbered(shown)}\n\nWhen is the unit active?'
  messages = ('system', _EXPLAIN), ('user', user)
  return Request(messages, _MAX_EXPLANATION_TOKENS, _TYPICAL)


def simulate(explanation: str, window: Window, pieces: Pieces) -> Request:
  """Asks for the activation at every token of a window."""
  lines = [
    f'{number}: {json.dumps(text, ensure_ascii=False)}'
    for number, text in enumerate(pieces(window.tokens_L), start=1)
  ]
  user = f'{_told(explanation)}\n\nTokens:\n' + '\n'.join(lines)
  return _for_numbers(_SIMULATE, user, len(lines))


def detect(
  explanation: str, windows: Sequence[Window], pieces: Pieces
) -> Request:
  """Asks in which windows a latent fires."""
  shown = [''.join(pieces(window.tokens_L)) for window in windows]
  user = f'{_told(explanation)}\n\n{_numbered(shown)}'
  return _for_numbers(_DETECT, user, len(shown))


def fuzz(
  explanation: str,
  windows: Sequence[Window],
  marks: Sequence[np.ndarray],
  pieces: Pieces,
) -> Request:
  """Asks in which windows the marks, a bool for each token, are right."""
  shown = []
  for window, marks_L in zip(windows, marks, strict=True):
    pairs = _joined(pieces, window, marks_L)
    shown.append(''.join(f'<<{t}>>' if is_on else t for t, is_on in pairs))
  user = f'{_told(explanation)}\n\n{_numbered(shown)}'
  return _for_numbers(_FUZZ, user, len(shown))


def repair(request: Request, answer: str, complaint: str) -> Request:
  """Asks again after an answer that could not be read."""
  said = _REPAIR.format(complaint=complaint)
  messages = (*request.messages, ('assistant', answer), ('user', said))
  return Request(messages, request.max_tokens, request.typical, request.end)


def _joined(pieces, window, values_L):
  """Returns texts with their values; the tokens of a character are one."""
  texts = pieces(window.tokens_L)
  return [
    (''.join(texts[group]), max(values_L[group]))
    for group in pieces.groups(window.tokens_L)
  ]


def _told(explanation):
  return f'What is known of the unit: {explanation}'


def _numbered(pieces):
  lines = [f'Text {n}:\n{piece}' for n, piece in enumerate(pieces, start=1)]
  return '\n\n'.join(lines)


def _for_numbers(system, user, count):
  typical = json.dumps({str(number): 0 for number in range(1, count + 1)})
  messages = ('system', system), ('user', user)
  return Request(messages, 40 + _ENTRY_TOKENS * count, typical, end='}')
