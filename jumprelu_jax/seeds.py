"""Seeds: which are allowed, and the keys that JAX makes of them."""

from __future__ import annotations

import jax
import numpy as np

from jumprelu_jax import errors

#: What NumPy, JAX and a table's column of 64-bit integers all hold.
MOST = 2**63 - 1


def check(name: str, seed: int) -> None:
  """Raises errors.InputError unless a seed is one, by what users call it."""
  if not 0 <= seed <= MOST:
    raise errors.InputError(
      f'{name}={seed}: expected a seed from 0 to {MOST} (2^63 - 1).'
    )


def key(seed: int) -> jax.Array:
  """Returns a seed's random key.

  `jax.random.key` takes a seed's lower 32 bits alone unless 64-bit types are
  enabled, so that 0 and 2^32 were one seed. Below 2^32 the key is the same.
  """
  halves = [seed >> 32, seed & (2**32 - 1)]
  return jax.random.wrap_key_data(np.array(halves, np.uint32))
