"""Our own files: a run's SAE folder, and SAEs saved with their details.

params.npz is Gemma Scope's, and may have k or W_skip besides; config.json is a
run's, details.json what `save` writes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib

import numpy as np

from jumprelu_jax import errors
from jumprelu_jax import whole
from jumprelu_jax.exchange import details as details_lib
from jumprelu_jax.exchange import untrusted
from jumprelu_jax.exchange import weights
from jumprelu_jax.sae import released

WEIGHTS, RUN, DETAILS = 'params.npz', 'config.json', 'details.json'
_SHAPES = {
  'W_enc': 'DM', 'b_enc': 'M', 'W_dec': 'ME', 'b_dec': 'E', 'threshold': 'M',
  'k': '', 'W_skip': 'DE',
}  # fmt: skip


def recognises(folder: pathlib.Path) -> bool:
  """True for params.npz beside what says that it is ours."""
  if not (folder / WEIGHTS).is_file():
    return False
  if (folder / DETAILS).is_file():
    return True
  return (folder / RUN).is_file() and 'lm' in untrusted.read_json(folder / RUN)


def read(
  folder: pathlib.Path,
) -> tuple[released.Released, details_lib.Details]:
  """Reads a folder; InputError if it holds no SAE, or a damaged one."""
  path = folder / WEIGHTS
  if not path.is_file():
    raise errors.InputError(f'{path} does not exist; give a trained SAE.')
  optional = ('threshold', 'k', 'W_skip')
  found = weights.take(path, untrusted.read_npz, _SHAPES, optional)
  threshold, k = found.pop('threshold', None), found.pop('k', None)
  if (threshold is None) == (k is None):
    raise weights.wanted(path, 'either threshold or k')
  rule = threshold if k is None else int(k)
  return weights.build(**found, rule=rule), _details(folder)


def write(
  sae: released.Released,
  details: details_lib.Details,
  folder: str | os.PathLike,
) -> None:
  """Writes params.npz and details.json."""
  folder, arrays = pathlib.Path(folder), weights.arrays_of(sae)
  if isinstance(sae, released.TopKSAE):
    arrays['k'] = np.int64(sae.k)
  with whole.replacing(folder / WEIGHTS) as file:
    np.savez(file, **arrays)
  known = dataclasses.asdict(details)
  whole.write_text(folder / DETAILS, json.dumps(known, indent=2) + '\n')


def _details(folder):
  if (folder / DETAILS).is_file():
    known = untrusted.read_json(folder / DETAILS)
    names = {field.name for field in dataclasses.fields(details_lib.Details)}
    try:
      return details_lib.Details(
        **{k: v for k, v in known.items() if k in names}
      )
    except errors.InputError as error:
      raise errors.InputError(f'{folder / DETAILS}: {error}') from error
  run = untrusted.read_json(folder / RUN)
  lm, text, sae = (untrusted.group(run, name) for name in ('lm', 'text', 'sae'))
  metrics = {}
  if (folder / 'evaluation.json').is_file():
    metrics = untrusted.read_json(folder / 'evaluation.json')
  layer = details_lib.number(lm.get('layer'), -1)
  target = details_lib.text(lm.get('target_site'))
  target_layer = details_lib.number(lm.get('target_layer'), -1)
  return details_lib.Details(
    model=details_lib.text(lm.get('path')),
    site=details_lib.text(lm.get('site')),
    layer=layer,
    target_site=target,
    target_layer=(target_layer if target_layer >= 0 else layer)
    if target
    else -1,
    context_length=details_lib.number(text.get('context_length'), 0),
    trained_as=details_lib.text(sae.get('architecture')),
    l0=details_lib.positive(metrics.get('l0')),
    other=run,
  )
