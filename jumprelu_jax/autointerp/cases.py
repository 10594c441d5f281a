"""Which latents are scored, and on what."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses

import numpy as np

from jumprelu_jax import errors
from jumprelu_jax import seeds
from jumprelu_jax.autointerp import background as background_lib
from jumprelu_jax.autointerp import windows as windows_lib
from jumprelu_jax.autointerp.windows import Window
from jumprelu_jax.records import schema

_LATENTS_AT_A_TIME = 256


@dataclasses.dataclass(frozen=True)
class Choice:
  """Which latents, and how many windows of each.

  Attributes:
    latents: how many, a sample stratified by frequency; 0 is all.
    explaining: windows that the explainer is shown; 0 is all of their half.
    scoring: windows in which the latent fires, to score on; 0 likewise.
    background: windows drawn from all text, to score on; 0 likewise.
    min_windows: with fewer windows on either half a latent is not scored.
    seed: of the sample and of the halves.
  """

  latents: int = 0
  explaining: int = 20
  scoring: int = 10
  background: int = 10
  min_windows: int = 4
  seed: int = 0

  def __post_init__(self):
    errors.check_least(1, {'min_windows': self.min_windows})
    errors.check_least(0, vars(self))
    seeds.check('seed', self.seed)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
  """A latent, and its windows.

  Attributes:
    latent: its index.
    frequency: share of positions of text at which it fires.
    reason: why it cannot be scored, of `reasons.REASONS`; '' if it can.
    detail: of the reason.
    explaining: windows that the explainer is shown.
    fitting: all windows of that half, those of the background too.
    scoring: windows of the other half, those of the background last.
    silent: windows of that half's background in which it does not fire.
  """

  latent: int
  frequency: float
  reason: str = ''
  detail: str = ''
  explaining: tuple[Window, ...] = ()
  fitting: tuple[Window, ...] = ()
  scoring: tuple[Window, ...] = ()
  silent: tuple[Window, ...] = ()


def sample(count_M: np.ndarray, wanted: int, seed: int) -> np.ndarray:
  """Returns latents of all frequencies, each as likely as any other.

  Latents are put in order of how often they fire, cut into as many strata of
  one size as are wanted, and one is drawn of each: latents that never fire get
  their share. What is over is left out by chance beforehand.

  Args:
    count_M: how often each latent fires.
    wanted: how many; 0, or more than there are, is all.
    seed: of the draw.

  Returns:
    Indices, ascending.
  """
  M = len(count_M)
  if not 0 < wanted < M:
    return np.arange(M)
  rng = np.random.default_rng((seed, 0))
  size = M // wanted
  kept = rng.permutation(M)[: size * wanted]  # in no order, so neither are ties
  order = kept[np.argsort(count_M[kept], kind='stable')]
  strata = order.reshape(wanted, size)
  return np.sort(rng.permuted(strata, axis=1)[:, 0])


def load(records: schema.Records, choice: Choice) -> Iterator[Case]:
  """Yields the chosen latents in order.

  The halves of a latent depend on the seed and its index alone.

  Raises:
    errors.InputError: the records hold no background.
  """
  latents = records.latents(['latent', 'count', 'frequency'])
  count_M = latents['count'].to_numpy()
  frequency_M = latents['frequency'].to_numpy()
  table = records.background()
  if not len(table):
    raise errors.InputError(
      f'{records.folder} has no background windows; make the records again '
      'with some.'
    )
  background = background_lib.Background(table, choice.seed)
  chosen = sample(count_M, choice.latents, choice.seed).tolist()
  for start in range(0, len(chosen), _LATENTS_AT_A_TIME):
    some = chosen[start : start + _LATENTS_AT_A_TIME]
    examples = _examples(records, some)
    for latent in some:
      frequency = float(frequency_M[latent])
      if count_M[latent] == 0:
        yield Case(latent, frequency, reason='dead')
      else:
        found = examples.get(latent, [])
        yield _case(latent, frequency, found, background, choice)


def _examples(records, latents):
  """Returns the example windows of some latents, in the records' order."""
  table = records.examples(latents)
  names = ('latent', 'stratum', 'sequence', 'start', 'tokens', 'activations')
  found = {}
  for row in zip(*(table[name].to_pylist() for name in names), strict=True):
    latent, stratum, sequence, start, tokens, activations = row
    window = Window(
      np.array(tokens), np.array(activations), stratum, sequence, start
    )
    found.setdefault(latent, []).append(window)
  return found


def _case(latent, frequency, examples, background, choice):
  rng = np.random.default_rng((choice.seed, 2, latent))
  explain, score = windows_lib.halves(windows_lib.disjoint(examples), rng)
  if min(len(explain), len(score)) < choice.min_windows:
    detail = (
      f'{len(explain)} windows to explain from and {len(score)} to score on; '
      f'{choice.min_windows} are needed of each'
    )
    return Case(latent, frequency, 'too_few_examples', detail)
  fit_on = background.of_latent(latent, background.fitting, score)
  others = background.of_latent(latent, background.scoring, explain)
  others = [others[i] for i in rng.permutation(len(others))]
  silent = [window for window in others if not window.fires]
  return Case(
    latent,
    frequency,
    explaining=tuple(windows_lib.pick(explain, choice.explaining)),
    fitting=(*explain, *fit_on),
    scoring=(
      *windows_lib.pick(score, choice.scoring),
      *others[: choice.background or None],
    ),
    silent=tuple(silent),
  )
