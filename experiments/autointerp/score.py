"""Scores the latents of one SAE from its records.

  python -m experiments.autointerp score --records=RECORDS --out=OUT
  OPENAI_API_KEY=… python -m experiments.autointerp score --records=RECORDS \
      --out=OUT --measures=token_lookup,simulation,detection,fuzzing \
      --latents=1000 --endpoint=https://HOST/v1 --model=NAME \
      --price_in=0.1 --price_out=0.4 --max_cost=20 [--dry_run]

The same command continues what was killed, and pays for nothing twice.
"""

import asyncio
import dataclasses
import json
import pathlib

from absl import flags

from experiments.autointerp import readers
from jumprelu_jax import errors
from jumprelu_jax import progress
from jumprelu_jax.autointerp import asking
from jumprelu_jax.autointerp import cache as cache_lib
from jumprelu_jax.autointerp import cases
from jumprelu_jax.autointerp import prompts
from jumprelu_jax.autointerp import reasons
from jumprelu_jax.autointerp import study
from jumprelu_jax.autointerp import table
from jumprelu_jax.records import schema

_RECORDS = flags.DEFINE_string(
  'records', None, 'Folder of latent records.', required=True
)
_OUT = flags.DEFINE_string('out', None, 'Folder to write to.', required=True)
_MEASURES = flags.DEFINE_list(
  'measures', list(study.LOOKUPS), f'Some of {", ".join(study.MEASURES)}.'
)
_LABEL = flags.DEFINE_string(
  'label', None, "What to call the architecture, not the records' name."
)
_CHOICE = cases.Choice()
_LATENTS = flags.DEFINE_integer(
  'latents', _CHOICE.latents, 'Sample of as many latents; 0 is all.'
)
_EXPLAINING = flags.DEFINE_integer(
  'explaining', _CHOICE.explaining, 'Windows that the explainer is shown.'
)
_SCORING = flags.DEFINE_integer(
  'scoring', _CHOICE.scoring, 'Windows to score on in which it fires; 0: all.'
)
_BACKGROUND = flags.DEFINE_integer(
  'background', _CHOICE.background, 'Windows of any text likewise.'
)
_MIN_WINDOWS = flags.DEFINE_integer(
  'min_windows', _CHOICE.min_windows, 'Fewer on either half: no score.'
)
_SEED = flags.DEFINE_integer('seed', 0, 'Of the sample and of the halves.')
_ATTEMPTS = flags.DEFINE_integer(
  'attempts', 2, 'At an answer that can be read.'
)
_CACHE = flags.DEFINE_string(
  'cache', None, 'Where answers are kept; by default OUT/answers.sqlite.'
)
_RETRY = flags.DEFINE_list(
  'retry', [], 'Reasons to ask again; `transient` is those that may be gone.'
)
_PRICE_IN = flags.DEFINE_float('price_in', 0.0, 'Of a million tokens asked.')
_PRICE_OUT = flags.DEFINE_float('price_out', 0.0, 'Of a million answered.')
_MAX_COST = flags.DEFINE_float('max_cost', None, 'Spend no more than this.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Only say what it would cost.')


def choice_of_flags():
  return cases.Choice(
    latents=_LATENTS.value,
    explaining=_EXPLAINING.value,
    scoring=_SCORING.value,
    background=_BACKGROUND.value,
    min_windows=_MIN_WINDOWS.value,
    seed=_SEED.value,
  )


def ignored():
  """Returns the reasons that --retry names."""
  unknown = set(_RETRY.value) - {'transient', *reasons.REASONS}
  if unknown:
    raise errors.InputError(
      f'--retry={",".join(_RETRY.value)}: expected transient, or some of '
      f'{", ".join(reasons.REASONS)}.'
    )
  some = set(_RETRY.value) - {'transient'}
  return some | set(reasons.TRANSIENT if 'transient' in _RETRY.value else ())


def say_estimate(estimate, budget):
  """Says what it would cost; refuses what is over the limit."""
  asking.say(estimate.spent, budget, 'estimate, of what is not kept yet')
  new = budget.cost(estimate.spent)
  if new and budget.most is not None and estimate.cost() > budget.most:
    raise errors.InputError(
      f'the estimate of {new:.4g}, with {estimate.cost() - new:.4g} that the '
      f'answers in the cache have cost, is over --max_cost={budget.most:g}; '
      'score fewer --latents, or raise it.'
    )


async def ask_all(records, choice, setting, total, out):
  """Returns rows, and what was spent; no rows in a dry run."""
  budget = asking.Budget(_PRICE_IN.value, _PRICE_OUT.value, _MAX_COST.value)
  async with readers.of_flags() as reader:
    path = _CACHE.value or out / 'answers.sqlite'
    cache = cache_lib.Cache(path, ignored())
    asked = [name for name in setting.measures if name in study.ASKED]
    without = dataclasses.replace(setting, measures=tuple(asked))
    estimator = asking.Estimator(reader.identity)
    prices = dataclasses.replace(budget, most=None)
    estimate = asking.Asker(estimator, cache, prices, keeps=False)
    await study.run(
      cases.load(records, choice), without, estimate, total=total,
      label='estimate',
    )  # fmt: skip
    say_estimate(estimate, budget)
    if _DRY_RUN.value:
      return None, None
    ask = asking.Asker(reader, cache, budget)
    rows = await study.run(
      cases.load(records, choice), setting, ask, total=total,
      at_a_time=readers.at_a_time(),
    )  # fmt: skip
    asking.say(ask.spent, budget, 'spent')
    return rows, ask.spent


def about_of(records, choice, setting, spent):
  """Returns what summary.json says beside the averages."""
  source = dataclasses.asdict(records.source)
  names = (
    'sae', 'model', 'site', 'layer', 'architecture', 'l0', 'text',
    'num_latents', 'positions',
  )  # fmt: skip
  about = {name: source[name] for name in names}
  if _LABEL.value:
    about['architecture'] = _LABEL.value
  settings = dataclasses.asdict(choice) | {'attempts': setting.attempts}
  return about | {
    'settings': settings,
    'prompts_version': prompts.VERSION if setting.asks else None,
    'answered_by': readers.name_of_flags() if setting.asks else None,
    'spent': dataclasses.asdict(spent) if spent else None,
  }


def main():
  out, choice = pathlib.Path(_OUT.value), choice_of_flags()
  records = schema.read(_RECORDS.value)
  setting = study.Setting(
    tuple(_MEASURES.value), records.pieces, _ATTEMPTS.value, choice.seed
  )
  if out.exists() and not out.is_dir():
    raise errors.InputError(f'--out={out} is no folder; give another name.')
  M = records.source.num_latents
  total, spent = min(choice.latents or M, M), None
  if setting.asks:
    rows, spent = asyncio.run(ask_all(records, choice, setting, total, out))
    if rows is None:
      return
  else:
    found = cases.load(records, choice)
    rows = asyncio.run(study.run(found, setting, None, total=total))
  about = about_of(records, choice, setting, spent)
  about = table.write(out, rows, setting.measures, about)
  print(table.format_summary(about))
  print(json.dumps(about['scores']))
  progress.say(f'{out}: scores.parquet, scores.csv, summary.json')
