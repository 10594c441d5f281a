"""From the arrays of a file to an SAE, checked and in one form, and back.

In: whatever is subtracted from the input is folded into the encoder's bias,
scales of decoder rows that count in the choice of latents are folded away, and
all is float32. Rows are not scaled to unit norm: activations stay those of the
file.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
import os
import pathlib
from typing import Any

from jax import numpy as jnp
import numpy as np
import safetensors.numpy

from jumprelu_jax import errors
from jumprelu_jax import whole
from jumprelu_jax.exchange import untrusted
from jumprelu_jax.sae import released

#: What decides which latents fire: a threshold each [M], one for all, or k.
Rule = np.ndarray | float | int


def take(
  path: str | os.PathLike,
  read: Callable[[str | os.PathLike, untrusted.Check], untrusted.Arrays],
  shapes: Mapping[str, str],
  optional: Collection[str] = (),
  rename: Callable[[str], str] = str,
) -> dict[str, np.ndarray]:
  """Returns a file's arrays as float32, if they are those wanted.

  Names and shapes are checked before any array is read.

  Args:
    path: of the file.
    read: a reader of `untrusted`, or `torch_zip.read`.
    shapes: name → letters of its shape, 'DM'; the same letter, the same size.
      '*' stands for one number or one for each latent.
    optional: names that may be missing.
    rename: from the names in the file to those of `shapes`.

  Raises:
    errors.InputError: one is missing, unknown, of another shape, or not finite
      (a threshold may be infinite: its latent never fires).
  """

  def check(headers):
    renamed = {rename(name): header.shape for name, header in headers.items()}
    if len(renamed) < len(headers):
      raise wanted(path, f'each of {_listed(renamed)} once')
    _check_shapes(path, renamed, shapes, optional)

  arrays = read(path, check)
  found = {
    rename(name): np.asarray(array, np.float32)
    for name, array in arrays.items()
  }
  for name, array in found.items():
    is_good = ~np.isnan(array) if 'threshold' in name else np.isfinite(array)
    if not is_good.all():
      raise errors.InputError(
        f'{path}: {name} has {int((~is_good).sum())} numbers that are not '
        'finite; expected none.'
      )
  return found


def _check_shapes(path, found, shapes, optional):
  """Raises InputError unless the shapes of a file's arrays are those wanted."""
  missing = set(shapes) - set(found) - set(optional)
  unknown = set(found) - set(shapes)
  if missing or unknown:
    raise errors.InputError(
      f'{path} holds {_listed(found)}; expected {", ".join(shapes)} (optional: '
      f'{", ".join(optional) or "none"}).'
    )
  sizes = {}
  for name, shape in sorted(found.items(), key=lambda item: -len(item[1])):
    letters = shapes[name]
    if letters == '*':
      letters = 'M' if shape else ''
    fits = len(letters) == len(shape)
    if fits:
      ours = [sizes.setdefault(a, n) for a, n in zip(letters, shape)]
      fits = ours == list(shape)
    if not fits:
      raise errors.InputError(
        f'{path}: {name} has shape {list(shape)}, which does not fit '
        f'[{", ".join(letters)}] with {sizes}.'
      )
  if 0 in sizes.values():
    raise errors.InputError(
      f'{path} holds arrays of no size ({sizes}); expected 1 or more.'
    )


def _listed(names):
  """Returns names from a file for a message, the first of many."""
  shown = ', '.join(name[:60] for name in sorted(names)[:12]) or 'nothing'
  return shown if len(names) <= 12 else f'{shown}, …'


def build(
  W_enc: np.ndarray,
  b_enc: np.ndarray,
  W_dec: np.ndarray,
  b_dec: np.ndarray,
  rule: Rule,
  *,
  subtracts: np.ndarray | None = None,
  W_skip: np.ndarray | None = None,
) -> released.Released:
  """Returns the SAE of some maps.

  Args:
    W_enc: [D, M].
    b_enc: [M].
    W_dec: [M, E].
    b_dec: [E].
    rule: thresholds [M], one for all latents (0 for a ReLU), or, an int, k.
    subtracts: from the input before it is encoded, [D].
    W_skip: [D, E].
  """
  if subtracts is not None:
    shift = np.matmul(np.asarray(subtracts, np.float64), W_enc)
    b_enc = np.asarray(b_enc - shift, np.float32)
  maps = {'W_enc': W_enc, 'b_enc': b_enc, 'W_dec': W_dec, 'b_dec': b_dec}
  maps['W_skip'] = W_skip
  maps = {
    name: None if a is None else jnp.asarray(a, 'float32')
    for name, a in maps.items()
  }
  if isinstance(rule, int):
    if not 1 <= rule <= len(b_enc):
      raise errors.InputError(
        f'k={rule} of {len(b_enc)} latents is not supported; expected 1 to '
        f'{len(b_enc)}.'
      )
    return released.TopKSAE(**maps, k=rule)
  threshold_M = jnp.broadcast_to(jnp.asarray(rule, 'float32'), b_enc.shape)
  return released.SAE(**maps, threshold=threshold_M)


def gated(
  W_enc: np.ndarray,
  b_gate: np.ndarray,
  r_mag: np.ndarray,
  b_mag: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns (W_enc, b_enc, threshold) of a tied Gated SAE's encoder.

  It is a JumpReLU's (arXiv:2404.16014, App. E).
  """
  ratio_M = np.exp(np.asarray(r_mag, np.float64))
  threshold_M = np.maximum(b_mag - ratio_M * b_gate, 0)
  return W_enc * ratio_M, b_mag, threshold_M


def unit_rows(
  W_enc: np.ndarray,
  b_enc: np.ndarray,
  W_dec: np.ndarray,
  b_dec: np.ndarray,
) -> dict[str, np.ndarray]:
  """Returns maps with decoder rows of unit norm, if latents are chosen so."""
  norm_M = np.linalg.norm(np.asarray(W_dec, np.float64), axis=1)
  norm_M = np.where(norm_M > 0, norm_M, 1)
  return {
    'W_enc': W_enc * norm_M,
    'b_enc': b_enc * norm_M,
    'W_dec': W_dec / norm_M[:, None],
    'b_dec': b_dec,
  }


def arrays_of(sae: released.Released) -> untrusted.Arrays:
  """Returns an SAE's arrays by our names, without those it has not."""
  names = ('W_enc', 'b_enc', 'W_dec', 'b_dec', 'threshold', 'W_skip')
  found = {name: getattr(sae, name, None) for name in names}
  return {
    k: np.asarray(v, np.float32) for k, v in found.items() if v is not None
  }


def write_safetensors(
  folder: str | os.PathLike,
  name: str,
  arrays: Mapping[str, np.ndarray],
  config_name: str,
  config: Mapping[str, Any],
) -> None:
  """Writes arrays as a safetensors file, and a config as JSON beside it."""
  folder = pathlib.Path(folder)
  with whole.replacing(folder / name) as file:
    file.write(safetensors.numpy.save(dict(arrays)))
  whole.write_json(folder / config_name, config)


def wanted(path: str | os.PathLike, what: str) -> errors.InputError:
  """Returns the error of a file that lacks something."""
  return errors.InputError(f'{path}: expected {what}.')


def refuse(format_name: str, what: str) -> errors.InputError:
  """Returns the error of what a format cannot express."""
  return errors.InputError(
    f'--format={format_name} cannot express {what}; choose another format '
    '(gemma_scope2 and saelens express most).'
  )
