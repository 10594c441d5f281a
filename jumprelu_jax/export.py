"""Released SAEs on disk: Gemma Scope's `params.npz`."""

from __future__ import annotations

import os
import pathlib

from jax import numpy as jnp
import numpy as np

from jumprelu_jax import errors
from jumprelu_jax import whole
from jumprelu_jax.sae import released

FILE_NAME = 'params.npz'
_MAPS = ('W_enc', 'b_enc', 'W_dec', 'b_dec')


def save_npz(sae: released.Released, path: str | os.PathLike) -> None:
  """Writes a folded SAE as float32 arrays under Gemma Scope's names.

  W_enc [D, M], b_enc [M], W_dec [M, D], b_dec [D], threshold [M]. Beyond Gemma
  Scope: k, a number, where k latents fire instead of a threshold's; W_skip
  [D, D] where there is one.
  """
  arrays = {key: np.asarray(getattr(sae, key), 'float32') for key in _MAPS}
  if isinstance(sae, released.TopKSAE):
    arrays['k'] = np.int64(sae.k)
  else:
    arrays['threshold'] = np.asarray(sae.threshold, 'float32')
  if sae.W_skip is not None:
    arrays['W_skip'] = np.asarray(sae.W_skip, 'float32')
  with whole.replacing(path) as file:
    np.savez(file, **arrays)


def load_npz(path: str | os.PathLike) -> released.Released:
  """Reads what `save_npz`, or Gemma Scope, wrote.

  Raises:
    errors.InputError: the file is missing or damaged, lacks an array, or its
      shapes do not fit together.
  """
  if not pathlib.Path(path).is_file():
    raise errors.InputError(f'{path} does not exist; give a trained SAE.')
  try:
    with np.load(path, allow_pickle=False) as file:
      rule = 'k' if 'k' in file else 'threshold'
      optional = [key for key in ('W_skip',) if key in file]
      arrays = {key: np.asarray(file[key]) for key in (*_MAPS, rule, *optional)}
  except errors.OF_DAMAGED_ARRAYS as error:
    raise errors.InputError(
      f'{path} is not a whole params.npz with {", ".join(_MAPS)} and threshold '
      f'or k ({error}).'
    ) from error
  _check_shapes(path, arrays)
  if rule == 'k':
    k = int(arrays.pop('k'))
    return released.TopKSAE(**_as_float32(arrays), k=k)
  return released.SAE(**_as_float32(arrays))


def _check_shapes(path, arrays):
  D = arrays['W_enc'].size // max(arrays['b_enc'].size, 1)
  E, M = arrays['b_dec'].size, arrays['b_enc'].size
  expected = {
    'W_enc': (D, M),
    'b_enc': (M,),
    'W_dec': (M, E),
    'b_dec': (E,),
    'threshold': (M,),
    'W_skip': (D, E),
    'k': (),
  }
  for key, array in arrays.items():
    if array.shape != expected[key]:
      raise errors.InputError(
        f'{path}: {key} has shape {array.shape}, expected {expected[key]}.'
      )


def _as_float32(arrays):
  return {key: jnp.asarray(a, 'float32') for key, a in arrays.items()}
