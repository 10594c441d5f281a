"""What each page of a study says, as values for its template."""

from __future__ import annotations

from collections.abc import Mapping

import flask

from jumprelu_jax.ratings import answers
from jumprelu_jax.ratings import study as study_lib
from jumprelu_jax.records import schema

#: The longest explanation, in characters.
MAX_EXPLANATION = 300

#: Ratings in the order of the page: label and key.
CHOICES = {'yes': ('Yes', 'y'), 'maybe': ('Maybe', 'm'), 'no': ('No', 'n')}

# Shades of the style sheet; an activation of 1% has the first.
_SHADES = 10


def raters(study: study_lib.Study) -> list[dict[str, object]]:
  """Returns each rater's name and how many of how many items have answers."""
  return [
    {
      'name': rater,
      'answered': num_answered(study, rater),
      'total': len(names),
    }
    for rater, names in study.orders.items()
  ]


def num_answered(study: study_lib.Study, rater: str) -> int:
  """Returns how many of a rater's items have an answer."""
  return len(_answers_of(study, rater))


def overview(study: study_lib.Study, rater: str) -> dict[str, object]:
  """Returns what the page of all answers shows."""
  given = _answers_of(study, rater)
  return {
    'rater': rater,
    'answered': len(given),
    'rows': [
      {
        'number': number,
        'address': _address(rater, name),
        'rating': CHOICES[given[name].rating][0] if name in given else '',
        'explanation': given[name].explanation if name in given else '',
      }
      for number, name in enumerate(study.orders[rater], start=1)
    ],
  }


def item(study: study_lib.Study, rater: str, name: str) -> dict[str, object]:
  """Returns what an item's page shows."""
  names = study.orders[rater]
  place = names.index(name)
  given = _answers_of(study, rater)
  return {
    'rater': rater,
    'number': place + 1,
    'total': len(names),
    'answered': len(given),
    'answer': given.get(name),
    'address': _address(rater, name),
    'previous': _address(rater, names[place - 1]) if place else None,
    'following': (
      _address(rater, names[place + 1]) if place + 1 < len(names) else None
    ),
    'choices': CHOICES,
    'max_explanation': MAX_EXPLANATION,
    'strata': list(map(_stratum, study.shown[name])),
  }


def address_of_next(
  study: study_lib.Study, rater: str, after: str | None = None
) -> str:
  """Returns where a rater goes on: an item without an answer, or all answers.

  Args:
    study: the study.
    rater: a name.
    after: the item that was answered; those behind it come first.
  """
  names = study.orders[rater]
  first = names.index(after) + 1 if after else 0
  given = _answers_of(study, rater)
  for name in names[first:] + names[:first]:
    if name not in given:
      return _address(rater, name)
  return flask.url_for('all_answers', rater=rater)


def read_form(form: Mapping[str, str]) -> tuple[str, str]:
  """Returns the rating and explanation of a form; 400 if it has none."""
  rating = form.get('rating', '')
  if rating not in answers.RATINGS:
    flask.abort(400, 'Answer Yes, Maybe or No; nothing was stored.')
  explanation = ' '.join(form.get('explanation', '').split())
  if len(explanation) > MAX_EXPLANATION:
    flask.abort(
      400,
      f'The explanation has {len(explanation)} characters; {MAX_EXPLANATION} '
      'are the most. Nothing was stored.',
    )
  return rating, explanation


def _answers_of(study, rater):
  """Returns a rater's answers that count, by item."""
  current = answers.current(study.answers)
  return {item: one for (who, item), one in current.items() if who == rater}


def _address(rater, name):
  return flask.url_for('show', rater=rater, item=name)


def _stratum(stratum):
  """Returns a stratum with tokens as text, shade and tooltip."""
  windows = [
    [
      {
        'text': _visible(text),
        'percent': percent,
        'shade': -(-percent * _SHADES // 100),
        'is_own': i == window['at'],
      }
      for i, (text, percent) in enumerate(window['tokens'])
    ]
    for window in stratum['windows']
  ]
  return {'is_top': stratum['stratum'] == schema.TOP, 'windows': windows}


def _visible(text):
  """Returns a token's text with a sign for what would not be seen."""
  for hidden, shown in (('\r', ''), ('\n', '↵'), ('\t', '⇥')):
    text = text.replace(hidden, shown)
  return text or '·'
