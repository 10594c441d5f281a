"""Explain, then simulate, detect and fuzz: one latent's scores."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Iterable
import dataclasses
import functools

import numpy as np

from jumprelu_jax import errors
from jumprelu_jax import preemption
from jumprelu_jax import progress
from jumprelu_jax.autointerp import answers
from jumprelu_jax.autointerp import lookup
from jumprelu_jax.autointerp import prompts
from jumprelu_jax.autointerp import reasons
from jumprelu_jax.autointerp import scores
from jumprelu_jax.autointerp.cases import Case
from jumprelu_jax.text.pieces import Pieces

Row = dict[str, object]
Ask = Callable[..., Awaitable[str]]

#: Scores that need no language model, and those that do.
LOOKUPS = tuple(lookup.LOOKUPS)
ASKED = ('simulation', 'detection', 'fuzzing')
MEASURES = (*LOOKUPS, *ASKED)

_PIECES_AT_A_TIME = 10
_MIN_PIECES = 2  # of each kind, to be told apart


@dataclasses.dataclass(frozen=True)
class Setting:
  """What is measured, and how.

  Attributes:
    measures: of MEASURES.
    pieces: the text of every token.
    attempts: at an answer that can be read.
    seed: of what is drawn here: which marks are wrong, in what order.
  """

  measures: tuple[str, ...]
  pieces: Pieces
  attempts: int = 2
  seed: int = 0

  def __post_init__(self):
    unknown = [name for name in self.measures if name not in MEASURES]
    if unknown or not self.measures:
      raise errors.InputError(
        f'--measures={",".join(self.measures)}: expected some of '
        f'{", ".join(MEASURES)}.'
      )
    errors.check_least(1, {'--attempts': self.attempts})

  @property
  def asks(self) -> bool:
    """Whether a language model is needed."""
    return bool(set(self.measures) & set(ASKED))


async def run(
  cases: Iterable[Case],
  setting: Setting,
  ask: Ask | None,
  *,
  total: int,
  at_a_time: int = 1,
  label: str = 'score',
) -> list[Row]:
  """Scores latents, some at a time.

  Args:
    cases: the latents; consumed as they are needed.
    setting: what to measure.
    ask: request → answer; None where nothing is asked.
    total: how many cases there are.
    at_a_time: latents under way together.
    label: of the progress.

  Returns:
    A row for each latent, in order, as `score` gives it.

  Raises:
    errors.InputError: of `ask`, when nothing more will be answered.
    preemption.PreemptedError: the process was asked to end.
  """
  tasks, failed, slots = [], [], asyncio.Semaphore(at_a_time)

  async def one(case):
    try:
      return await score(case, setting, ask)
    except Exception as error:
      failed.append(error)  # ends the run, not only this latent
      raise
    finally:
      slots.release()
      bar.advance(1)

  with progress.track(label, total, 'latents') as bar:
    try:
      for case in cases:
        await slots.acquire()
        preemption.check(
          'scoring was stopped on request; what was answered is kept, and the '
          'same command goes on.'
        )
        if failed:
          break
        tasks.append(asyncio.ensure_future(one(case)))
      return list(await asyncio.gather(*tasks))
    finally:
      for task in tasks:
        task.cancel()
      await asyncio.gather(*tasks, return_exceptions=True)


async def score(case: Case, setting: Setting, ask: Ask | None) -> Row:
  """Returns a latent's row.

  latent, frequency, explanation, and for each measure its score and its reason:
  one of them is None.
  """
  row = {'latent': case.latent, 'frequency': case.frequency}
  row |= {'explanation': None, 'detail': case.detail or None}
  if case.reason:
    unscored = reasons.Unscored(case.reason, case.detail)
    measured = dict.fromkeys(setting.measures, unscored)
  else:
    names = [name for name in setting.measures if name in LOOKUPS]
    measured = {name: _lookup(case, name) for name in names}
    if setting.asks:
      measured |= await _ask_all(case, setting, ask, row)
  for name in setting.measures:
    value = measured[name]
    if isinstance(value, reasons.Unscored):
      row |= {name: None, f'{name}_reason': value.reason}
      row['detail'] = row['detail'] or str(value)
    else:
      row |= {name: value, f'{name}_reason': None}
  return row


def _lookup(case, name):
  """Returns a table's score, or the reason that there is none."""
  predict = lookup.LOOKUPS[name](case.fitting)
  try:
    return scores.pearson(predict(case.scoring), _truth(case))
  except reasons.Unscored as reason:
    return reason


def _truth(case):
  return np.concatenate([window.activations_L for window in case.scoring])


async def _ask_all(case, setting, ask, row):
  """Returns the scores that a model gives; puts its explanation in the row."""
  wanted = [name for name in ASKED if name in setting.measures]
  until = functools.partial(_ask_until, ask, setting.attempts)
  try:
    request = prompts.explain(case.explaining, setting.pieces)
    explanation = await until(request, answers.explanation)
  except reasons.Unscored as reason:
    return dict.fromkeys(wanted, reason)
  row['explanation'] = explanation
  found = await asyncio.gather(
    *(_SCORERS[name](explanation, case, setting, until) for name in wanted),
    return_exceptions=True,
  )
  _check(found, reasons.Unscored)
  return dict(zip(wanted, found, strict=True))


def _check(found, *allowed):
  """Raises what was raised, above all what ends the run."""
  raised = [one for one in found if isinstance(one, BaseException)]
  for one in sorted(raised, key=lambda e: isinstance(e, reasons.Unscored)):
    if not isinstance(one, allowed):
      raise one


async def _ask_until(ask, attempts, request, read):
  """Returns what `read` makes of an answer; asks to correct what it cannot."""
  for _ in range(attempts):
    text = await ask(request)
    try:
      return read(text)
    except answers.MalformedError as error:
      complaint = str(error)
      request = prompts.repair(request, text, complaint)
  raise reasons.Unscored('malformed_answer', complaint)


async def _simulate(explanation, case, setting, until):
  """Returns the correlation over all tokens of all windows."""
  truth = _truth(case)
  scores.check_varies(truth)  # before it is paid for
  found = await _gather(
    until(
      prompts.simulate(explanation, window, setting.pieces),
      functools.partial(
        answers.numbers, count=len(window.tokens_L), largest=prompts.STEPS
      ),
    )
    for window in case.scoring
  )
  return scores.pearson(np.concatenate(found), truth)


async def _detect(explanation, case, setting, until):
  """Returns the balanced accuracy of which windows it fires in."""
  fires = [window for window in case.scoring if window.fires]
  silent = case.silent[: len(fires)]
  windows = [*fires, *silent]
  is_true = [True] * len(fires) + [False] * len(silent)
  order = _rng(setting, case, 'detection').permutation(len(windows))

  def request(some):
    shown = [windows[i] for i in some]
    return prompts.detect(explanation, shown, setting.pieces)

  return await _tell(request, order, is_true, until)


async def _fuzz(explanation, case, setting, until):
  """Returns the balanced accuracy of which windows' marks are right."""
  rng = _rng(setting, case, 'fuzzing')
  windows = [window for window in case.scoring if window.fires]
  windows = [windows[i] for i in rng.permutation(len(windows))]
  marks, is_true = [], []
  for window in windows:
    on_L = window.activations_L > 0
    off_L = _wrong_marks(on_L, rng)
    # In turn, so that there are as many of one kind as of the other.
    is_true.append(off_L is None or sum(is_true) * 2 <= len(is_true))
    marks.append(on_L if is_true[-1] else off_L)

  def request(some):
    return prompts.fuzz(
      explanation,
      [windows[i] for i in some],
      [marks[i] for i in some],
      setting.pieces,
    )

  return await _tell(request, np.arange(len(windows)), is_true, until)


_SCORERS = {'simulation': _simulate, 'detection': _detect, 'fuzzing': _fuzz}


def _wrong_marks(on_L, rng):
  """Returns as many marks where it is silent; None where there is no room."""
  silent = np.flatnonzero(~on_L)
  if len(silent) < on_L.sum():
    return None
  marks_L = np.zeros(len(on_L), bool)
  marks_L[rng.choice(silent, on_L.sum(), replace=False)] = True
  return marks_L


async def _tell(request, order, is_true, until):
  """Asks of pieces, some at a time, which are true; returns the accuracy."""
  counts = sum(is_true), len(is_true) - sum(is_true)
  if min(counts) < _MIN_PIECES:
    raise reasons.Unscored(
      'too_few_examples' if counts[0] < _MIN_PIECES else 'fires_everywhere',
      f'{counts[0]} true and {counts[1]} false pieces',
    )
  parts = np.array_split(order, -(-len(order) // _PIECES_AT_A_TIME))
  found = await _gather(
    until(
      request(some),
      functools.partial(answers.numbers, count=len(some), largest=1),
    )
    for some in parts
  )
  truth = [is_true[i] for i in order]
  return scores.accuracies(np.concatenate(found).astype(bool), truth)[0]


async def _gather(asked):
  """Returns all answers; waits for all also where one has none."""
  found = await asyncio.gather(*asked, return_exceptions=True)
  _check(found)
  return found


def _rng(setting, case, name):
  return np.random.default_rng(
    (setting.seed, 3 + ASKED.index(name), case.latent)
  )
