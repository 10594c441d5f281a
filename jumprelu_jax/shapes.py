"""The dimension key, and a check that binds its letters to sizes.

Arrays end in `_` and one letter per axis, so a name states a shape:

  B  rows of a batch: token activations in an SAE, sequences in a language model
  L  positions of a sequence          D  size of an activation (d_model)
  M  latents of an SAE                V  vocabulary
  N  rows or sequences of a data set

`lm.gemma2` adds a few letters for the inside of a transformer. Scalars have no
suffix. Parameters keep the field's names (W_enc, b_enc, W_dec, b_dec, ...).
"""

from __future__ import annotations

#: Steps, rows of a store and positions of a batch are counted in int32.
LARGEST_INDEX = 2**31 - 1


def check(**arrays) -> dict[str, int]:
  """Binds the letters of the arrays' names to sizes; free under `jax.jit`.

  check(x_BD=x, W_enc_DM=sae.W_enc) returns {'B': 4096, 'D': 768, 'M': 16384}.

  Raises:
    ValueError: a rank or a size does not agree with the names.
  """
  sizes = {}
  for name, array in arrays.items():
    letters = name.rsplit('_', 1)[1]
    if len(letters) != array.ndim:
      raise ValueError(
        f'{name}: the name says rank {len(letters)}, got shape {array.shape}.'
      )
    for letter, size in zip(letters, array.shape, strict=True):
      if sizes.setdefault(letter, size) != size:
        raise ValueError(
          f'{name}: {letter}={size}, but {letter}={sizes[letter]} in an '
          'array before it.'
        )
  return sizes
