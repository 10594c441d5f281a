"""Ratings as rows: what each rater said, of which latent of which SAE."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence

from jumprelu_jax.ratings import answers as answers_lib
from jumprelu_jax.ratings import study as study_lib

Row = Mapping[str, object]


def rows(
  study: study_lib.Study, answers: Iterable[answers_lib.Answer]
) -> list[dict[str, object]]:
  """Returns a row for each answer: the key of the blinding, applied.

  Args:
    study: the study.
    answers: those that count (`answers.current`); of other raters or items than
      the study's, none.

  Returns:
    Rows with rater, item, records, architecture, site, layer, l0, sparsity,
    latent, rating, score (0, 1, 2), explanation and at; by rater, in the order
    that the rater saw.
  """
  by_place = {(answer.rater, answer.item): answer for answer in answers}
  found = []
  for rater, names in study.orders.items():
    for name in names:
      if (rater, name) in by_place:
        found.append(_row(study, by_place[rater, name]))
  return found


def progress(
  study: study_lib.Study, rated: Sequence[Row]
) -> dict[str, tuple[int, int]]:
  """Returns how many items each rater has answered, and of how many."""
  done = [row['rater'] for row in rated]
  return {r: (done.count(r), len(names)) for r, names in study.orders.items()}


def _row(study, answer):
  item = study.items[answer.item]
  sae = study.saes[item.sae]
  return {
    'rater': answer.rater,
    'item': answer.item,
    'records': sae.records,
    'architecture': sae.architecture,
    'site': sae.site,
    'layer': sae.layer,
    'l0': sae.l0,
    'sparsity': sae.sparsity,
    'latent': item.latent,
    'rating': answer.rating,
    'score': answer.score,
    'explanation': answer.explanation,
    'at': answer.at,
  }
