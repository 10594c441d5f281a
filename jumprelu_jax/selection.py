"""Which pre-activations are the largest: of a row, and of a whole batch."""

from __future__ import annotations

import jax
from jax import numpy as jnp


def top_k(
  pre_BM: jax.Array, k: int, *, is_approximate: bool = False
) -> jax.Array:
  """ReLU of the k largest of each row, 0 elsewhere (arXiv:2406.04093, Eq. 2).

  Args:
    pre_BM: pre-activations, float32.
    k: how many.
    is_approximate: takes `lax.approx_max_k`, which is made for TPUs and misses
      a few; on other devices it is exact.

  Returns:
    Activations [B, M]; the gradient reaches the selected.
  """
  value_BK, index_BK = largest(pre_BM, k, is_approximate)
  return jnp.put_along_axis(
    jnp.zeros_like(pre_BM),
    index_BK,
    jax.nn.relu(value_BK),
    axis=-1,
    inplace=False,
  )


def largest(
  pre_BM: jax.Array, k: int, is_approximate: bool
) -> tuple[jax.Array, jax.Array]:
  """Returns the k largest of each row and where they are; see `top_k`."""
  select = jax.lax.approx_max_k if is_approximate else jax.lax.top_k
  return select(pre_BM, k)


def kth_largest(values: jax.Array, k: int) -> jax.Array:
  """The k-th largest of all elements, exactly, without a sort.

  Non-negative floats are ordered as their bits are, so the answer is found a
  bit at a time by counting. Over a mesh each of the 31 rounds adds up one
  number, where a sort would gather every element.

  Args:
    values: float32, not negative, of any shape and fewer than 2^31 elements.
    k: from 1 to the number of elements.

  Returns:
    A scalar of the same dtype, without a gradient.
  """
  bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(values), 'int32')

  def set_bit(i, found):
    candidate = found | (jnp.int32(1) << (30 - i))
    return jnp.where(jnp.sum(bits >= candidate) >= k, candidate, found)

  found = jax.lax.fori_loop(0, 31, set_bit, jnp.int32(0))
  return jax.lax.bitcast_convert_type(found, 'float32')
