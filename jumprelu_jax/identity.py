"""What makes a run this run: two of one identity end with the same bits."""

from __future__ import annotations

from collections.abc import Mapping
import json
from typing import Any

from jumprelu_jax import config as config_lib

# Where a run continues, how its batches are fetched, and how much of it is
# kept, may change; what it computes may not.
_MAY_DIFFER = (
  'mesh.data',
  'mesh.latent',
  'mesh.sweep',
  'activations.prefetch_batches',
  'mesh.divides_optimizer',
  'sae.capacity',
  'train.checkpoints_kept',
)


def of(run: config_lib.RunConfig) -> dict[str, Any]:
  """Returns a run's values, by dotted key, that decide what it computes."""
  return of_raw(run.to_dict())


def of_raw(raw: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the same of a config as it is stored, maybe by another version."""
  flat = config_lib.flatten(json.loads(json.dumps(raw)))
  return {k: v for k, v in flat.items() if k not in _MAY_DIFFER}


def differences(
  theirs: Mapping[str, Any], ours: Mapping[str, Any], now: str = 'now'
) -> str:
  """Returns 'key: this there, that now; …'; '' where there are none.

  Args:
    theirs: what was found.
    ours: what it is held against.
    now: the word for the latter, such as 'wanted'.
  """

  def shown(values, key):
    return repr(values[key]) if key in values else 'nothing'

  return '; '.join(
    f'{key}: {shown(theirs, key)} there, {shown(ours, key)} {now}'
    for key in sorted(theirs.keys() | ours.keys())
    if (key in theirs) != (key in ours) or theirs.get(key) != ours.get(key)
  )
