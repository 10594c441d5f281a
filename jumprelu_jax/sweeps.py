"""Which SAEs a sweep trains: a config → one config for each."""

from __future__ import annotations

from jumprelu_jax import architectures
from jumprelu_jax import config as config_lib
from jumprelu_jax import errors
from jumprelu_jax import train


def expand(run: config_lib.RunConfig) -> dict[str, config_lib.RunConfig]:
  """Returns a checked config for each SAE of `sweep.saes`, by its name.

  Raises:
    errors.InputError: an entry is not of the form, or a config that it gives
      cannot be trained; or two are the same.
  """
  entries = run.sweep.saes
  runs = [expanded for entry in entries for expanded in _expand(run, entry)]
  named = {architectures.name(expanded): expanded for expanded in runs}
  if not runs or len(named) < len(runs):
    raise errors.InputError(
      f'config.sweep.saes={entries}: expected at least one SAE and none twice.'
    )
  return named


def _expand(run, entry):
  architecture, _, rest = entry.partition('/')
  objective, *numbers = rest.split('/')
  if not numbers:
    raise _malformed(entry)
  named = {'sae.architecture': architecture, 'objective.name': objective}
  key = architectures.of(run.with_values(named)).sparsity
  number = int if key == architectures.K else float
  for text in numbers:
    try:
      value = number(text)
    except ValueError as error:
      raise _malformed(entry) from error
    expanded = run.with_values(named | {key: value})
    train.check(expanded)
    yield expanded


def _malformed(entry):
  return errors.InputError(
    f'config.sweep.saes: {entry!r} is not of the form '
    'architecture/objective/sparsity/…, such as jumprelu/l0/1e-3/2e-3 or '
    'topk/aux_k/16/32 (k is a whole number).'
  )
