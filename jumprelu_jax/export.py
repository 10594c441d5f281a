"""Released SAEs on disk: Gemma Scope's `params.npz`."""

from __future__ import annotations

import os
import pathlib
import zipfile

from jax import numpy as jnp
import numpy as np

from jumprelu_jax import errors
from jumprelu_jax import sae as sae_lib

FILE_NAME = 'params.npz'
_KEYS = ('W_enc', 'b_enc', 'W_dec', 'b_dec', 'threshold')


def save_npz(sae: sae_lib.SAE, path: str | os.PathLike) -> None:
  """Writes a folded SAE as float32 arrays under Gemma Scope's names.

  W_enc [D, M], b_enc [M], W_dec [M, D], b_dec [D], threshold [M]. The file is
  written beside its place and renamed: it is whole or not there.
  """
  path = pathlib.Path(path)
  aside = path.with_suffix('.partial')
  with aside.open('wb') as file:
    np.savez(
      file, **{key: np.asarray(getattr(sae, key), 'float32') for key in _KEYS}
    )
  os.replace(aside, path)


def load_npz(path: str | os.PathLike) -> sae_lib.SAE:
  """Reads what `save_npz`, or Gemma Scope, wrote.

  Raises:
    errors.InputError: the file is missing or damaged, lacks an array, or its
      shapes do not fit together.
  """
  if not pathlib.Path(path).is_file():
    raise errors.InputError(f'{path} does not exist; give a trained SAE.')
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = {key: np.asarray(file[key], 'float32') for key in _KEYS}
  except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
    raise errors.InputError(
      f'{path} is not a whole params.npz with {", ".join(_KEYS)} ({error}).'
    ) from error
  D, M = arrays['b_dec'].size, arrays['b_enc'].size
  expected = {
    'W_enc': (D, M),
    'b_enc': (M,),
    'W_dec': (M, D),
    'b_dec': (D,),
    'threshold': (M,),
  }
  for key, shape in expected.items():
    if arrays[key].shape != shape:
      raise errors.InputError(
        f'{path}: {key} has shape {arrays[key].shape}, expected {shape}.'
      )
  return sae_lib.SAE(**{key: jnp.asarray(arrays[key]) for key in _KEYS})
