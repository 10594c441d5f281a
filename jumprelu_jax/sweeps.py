"""Which SAEs a sweep trains: a config → one config for each."""

from __future__ import annotations

from collections.abc import Iterator
import itertools
import json

from jumprelu_jax import architectures
from jumprelu_jax import config as config_lib
from jumprelu_jax import errors
from jumprelu_jax import identity
from jumprelu_jax import train

# What may differ between the SAEs of a sweep: nothing that decides the rows.
_GROUPS = ('sae', 'objective', 'optimizer')


def expand(run: config_lib.RunConfig) -> dict[str, config_lib.RunConfig]:
  """Returns a checked config for each SAE of `sweep`, by its name.

  Each of `sweep.saes` with each combination of what `sweep.over` lists.

  Raises:
    errors.InputError: an entry is not of the form, or a config that it gives
      cannot be trained; or two are the same.
  """
  saes = [values for entry in run.sweep.saes for values in _saes(run, entry)]
  others = [_values_of(run, entry) for entry in run.sweep.over]
  found = [
    _checked(run, values, combination)
    for values in saes
    for combination in itertools.product(*others)
  ]
  named = dict(found)
  if not found or len(named) < len(found):
    raise errors.InputError(
      f'config.sweep.saes={run.sweep.saes}, over={run.sweep.over}: expected at '
      'least one SAE and none twice.'
    )
  first = {}
  for name, expanded in named.items():
    same = first.setdefault(json.dumps(identity.of(expanded)), name)
    if same != name:
      raise errors.InputError(
        f'config.sweep.over={run.sweep.over}: {same} and {name} are the same '
        'SAE; write each value once.'
      )
  return named


def _checked(run, values, combination):
  """Returns (name, config) of one SAE."""
  changed = dict(values) | {key: value for key, value, _ in combination}
  if 'seed' in changed:
    changed['train.stream_seed'] = run.stream_seed
  expanded = run.with_values(changed)
  train.check(expanded)
  also = [f'{key.split(".")[-1]}_{text}' for key, _, text in combination]
  return '_'.join([architectures.name(expanded), *also]), expanded


def _saes(run, entry) -> Iterator[dict[str, object]]:
  """Yields what an entry of `sweep.saes` sets."""
  architecture, _, rest = entry.partition('/')
  objective, *numbers = rest.split('/')
  if not numbers:
    raise _malformed(entry)
  named = {'sae.architecture': architecture, 'objective.name': objective}
  key = architectures.of(run.with_values(named)).sparsity
  number = int if key == architectures.K else float
  for text in numbers:
    try:
      yield named | {key: number(text)}
    except ValueError as error:
      raise _malformed(entry) from error


def _malformed(entry):
  return errors.InputError(
    f'config.sweep.saes: {entry!r} is not of the form '
    'architecture/objective/sparsity/…, such as jumprelu/l0/1e-3/2e-3 or '
    'topk/aux_k/16/32 (k is a whole number).'
  )


def _values_of(run, entry):
  """Returns (key, value, text) of each value of an entry of `sweep.over`."""
  key, equals, rest = entry.partition('=')
  known = config_lib.flatten(run.to_dict())
  is_allowed = key == 'seed' or key.split('.')[0] in _GROUPS
  if not equals or key not in known or not is_allowed:
    raise errors.InputError(
      f'config.sweep.over: {entry!r} is not of the form key=value/value/…, '
      'such as seed=0/1/2 or optimizer.learning_rate=1e-3/3e-3; keys are seed '
      f'and those of {", ".join(_GROUPS)}.'
    )
  convert = type(known[key])
  try:
    if convert not in (int, float, str):
      raise ValueError(f'{key} is no number and no word')
    return [(key, convert(text), text) for text in rest.split('/')]
  except ValueError as error:
    raise errors.InputError(
      f'config.sweep.over: {entry!r}: {error}.'
    ) from error
