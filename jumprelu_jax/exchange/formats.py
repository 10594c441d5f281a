"""Every format, and which of them a folder or file is."""

from __future__ import annotations

from collections.abc import Callable
import os
import pathlib
from typing import NamedTuple

from jumprelu_jax import errors
from jumprelu_jax import seals
from jumprelu_jax.exchange import details as details_lib
from jumprelu_jax.exchange import dictionary_learning
from jumprelu_jax.exchange import gemma_scope
from jumprelu_jax.exchange import llamascopium
from jumprelu_jax.exchange import own
from jumprelu_jax.exchange import saelens
from jumprelu_jax.exchange import sparsify
from jumprelu_jax.exchange import untrusted
from jumprelu_jax.sae import released

Loaded = tuple[released.Released, details_lib.Details]


class Format(NamedTuple):
  """A way to keep an SAE in a folder.

  Attributes:
    recognises: folder → whether it is of this format; may raise InputError.
    read: folder → (SAE, details).
    write: (SAE, details, folder) → None; InputError for what it cannot express.
  """

  recognises: Callable[[pathlib.Path], bool]
  read: Callable[[pathlib.Path], Loaded]
  write: Callable[..., None]


def _has(*names):
  return lambda folder: all((folder / name).is_file() for name in names)


def _is_llamascopium(folder):
  return _has(llamascopium.WEIGHTS, llamascopium.CONFIG)(folder) and (
    'sae_type' in untrusted.read_json(folder / llamascopium.CONFIG)
  )


#: Formats by the names that --format takes; the first that recognises a folder
#: reads it.
FORMATS = {
  'jumprelu_jax': Format(own.recognises, own.read, own.write),
  'gemma_scope': Format(
    _has(gemma_scope.NPZ), gemma_scope.read_npz, gemma_scope.write_npz
  ),
  'gemma_scope2': Format(
    _has(gemma_scope.SAFETENSORS),
    gemma_scope.read_safetensors,
    gemma_scope.write_safetensors,
  ),
  'saelens': Format(
    _has(saelens.WEIGHTS, saelens.CONFIG), saelens.read, saelens.write
  ),
  'llamascopium': Format(
    _is_llamascopium, llamascopium.read, llamascopium.write
  ),
  'dictionary_learning': Format(
    _has(dictionary_learning.WEIGHTS, dictionary_learning.CONFIG),
    dictionary_learning.read,
    dictionary_learning.write,
  ),
  'sparsify': Format(
    _has(sparsify.WEIGHTS, sparsify.CONFIG), sparsify.read, sparsify.write
  ),
}


def recognise(path: str | os.PathLike) -> tuple[str, pathlib.Path]:
  """Returns the format's name, and the folder of an SAE.

  Args:
    path: its folder, or one of the files in it.

  Raises:
    errors.InputError: it is none of FORMATS, or not what was sealed.
  """
  path = pathlib.Path(path)
  folder = path.parent if path.is_file() else path
  seals.check(
    folder,
    f'Restore that file; or, if it was changed on purpose, remove '
    f'{folder / seals.NAME}.',
    # Made again by the command of a run.
    optional=('evaluation.json', 'latents.npz'),
  )
  _refuse_llama_scope(folder)
  for name, one in FORMATS.items():
    if one.recognises(folder):
      return name, folder
  there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
  raise errors.InputError(
    f'{path} is no SAE that can be read; it holds '
    f'{", ".join(there[:8]) or "nothing"}; expected a folder of one of '
    f'{", ".join(FORMATS)}.'
  )


def _refuse_llama_scope(folder):
  """Names the layout of Llama Scope's first release, which is not read."""
  for root in (folder, folder.parent):
    if (root / 'hyperparams.json').is_file():
      raise errors.InputError(
        f"{root} has the layout of Llama Scope's first release "
        '(hyperparams.json and checkpoints/final.safetensors), which is not '
        'read; expected the present one (config.json and '
        f'{llamascopium.WEIGHTS}), or an SAE that SAELens has saved.'
      )


def load(path: str | os.PathLike) -> Loaded:
  """Returns the SAE of a folder or file, and what its files say of it.

  Raises:
    errors.InputError: it is of no known format, or damaged.
  """
  name, folder = recognise(path)
  return FORMATS[name].read(folder)


def save(
  sae: released.Released,
  details: details_lib.Details,
  folder: str | os.PathLike,
  format_name: str,
) -> None:
  """Writes an SAE into a folder that does not exist, or is empty.

  Raises:
    errors.InputError: the format is not known or cannot express it, or the
      folder holds something.
  """
  if format_name not in FORMATS:
    raise errors.InputError(
      f'format {format_name!r} is not known; expected one of '
      f'{", ".join(FORMATS)}.'
    )
  folder = pathlib.Path(folder)
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise errors.InputError(
      f'{folder} exists and is not empty; give a new folder.'
    )
  FORMATS[format_name].write(sae, details, folder)
  seals.write(folder, format_name)
