"""What a study found: tables and a figure."""

from __future__ import annotations

import pathlib

from jumprelu_jax import errors
from jumprelu_jax import progress
from jumprelu_jax import results
from jumprelu_jax.plot import ratings as figure
from jumprelu_jax.plot import style
from jumprelu_jax.ratings import agreement
from jumprelu_jax.ratings import answers
from jumprelu_jax.ratings import differences
from jumprelu_jax.ratings import rated
from jumprelu_jax.ratings import rates
from jumprelu_jax.ratings import study as study_lib


def write(study: study_lib.Study, out: pathlib.Path) -> None:
  """Writes ratings, rates, agreement and differences as CSV, and a figure.

  Raises:
    errors.InputError: nobody has answered yet.
  """
  rows = rated.rows(study, answers.current(study.answers).values())
  if not rows:
    raise errors.InputError(
      f'{study.folder} has no answers yet; let raters answer with '
      'experiments.rate serve.'
    )
  for rater, (done, total) in rated.progress(study, rows).items():
    if done < total:
      progress.say(f'{rater}: {done} of {total} items answered so far')
  found = rates.table(rows)
  tables = {
    'ratings': rows,
    'rates': found,
    'agreement': agreement.table(rows),
    'differences': differences.table(rows),
  }
  for name, table in tables.items():
    _write(table, out, name)
  style.save(figure.draw(found, title=_title(study, rows)), out, 'rates')
  progress.say(f'{out}: rates.png; {", ".join(tables)} as csv')


def _write(table, out, name):
  """Writes a table and prints it, but for single ratings."""
  if not table:
    progress.say(f'{name}: nothing to compare')
    (out / f'{name}.csv').unlink(missing_ok=True)  # of an earlier analysis
    return
  results.write(table, out / f'{name}.csv', list(table[0]))
  if name != 'ratings':
    print(f'{name}\n{results.format_table(table, list(table[0]))}\n')


def _title(study, rows):
  latents = len({row['item'] for row in rows})
  return (
    f'{len(rows)} ratings of {latents} latents of {len(study.saes)} SAEs, '
    f'{len({row["rater"] for row in rows})} raters'
  )
