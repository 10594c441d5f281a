"""Which pre-activations are the largest: of a row, and of a whole batch."""

from __future__ import annotations

import functools

import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np


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
  if is_approximate:
    value_BK, index_BK = largest(pre_BM, k, is_approximate)
    return jnp.put_along_axis(
      jnp.zeros_like(pre_BM),
      index_BK,
      jax.nn.relu(value_BK),
      axis=-1,
      inplace=False,
    )
  value_BK, index_BK = largest(jax.lax.stop_gradient(pre_BM), k, False)
  # All that is larger than the last, and of its equals those before it. Not a
  # scatter, which would gather the latents of a mesh.
  last_B1, place_B1 = value_BK[:, -1:], index_BK[:, -1:]
  is_before_BM = jnp.arange(pre_BM.shape[1])[None] <= place_B1
  is_in_BM = (pre_BM > last_B1) | ((pre_BM == last_B1) & is_before_BM)
  return jnp.where(is_in_BM, jax.nn.relu(pre_BM), 0)


def largest(
  pre_BM: jax.Array, k: int, is_approximate: bool
) -> tuple[jax.Array, jax.Array]:
  """Returns the k largest of each row and where they are; see `top_k`.

  Over a mesh (`sharding.on`) first the k largest of each device's latents, then
  those of all: no device needs more of the others than these. Equals are in the
  order of the latents, everywhere.
  """
  if is_approximate:
    return jax.lax.approx_max_k(pre_BM, k)
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.shape['latent'] == 1:
    return jax.lax.top_k(pre_BM, k)
  return jax.shard_map(
    functools.partial(_largest_of_shards, k=k),
    in_specs=P('data', 'latent'),
    out_specs=P('data', None),
    check_vma=False,  # equal along 'latent', by the gather
  )(pre_BM)


def _largest_of_shards(pre_BM, k):
  """`largest` of a row whose latents are divided over 'latent'."""
  M = pre_BM.shape[1]
  value_BK, index_BK = jax.lax.top_k(pre_BM, min(k, M))
  index_BK += jax.lax.axis_index('latent') * M
  found = [
    jax.lax.all_gather(one_BK, 'latent', axis=1, tiled=True)
    for one_BK in (value_BK, index_BK)
  ]
  value_BK, place_BK = jax.lax.top_k(found[0], k)
  return value_BK, jnp.take_along_axis(found[1], place_BK, axis=1)


#: Of a batch, in which latents are counted without 64-bit integers.
MOST_ROWS, MOST_LATENTS = 2**19, 2**24
_LOW_BITS = 12


def add_up_to(count_B: jax.Array, k: int) -> jax.Array:
  """Returns whether counts add up to k or more, exactly.

  The sum may be above 2^32: the lower 12 bits of the counts are added up by
  themselves, and what they carry is added to the sum of the others.

  Args:
    count_B: int32, from 0 to `MOST_LATENTS`; no more than `MOST_ROWS`.
    k: not negative.
  """
  count_B, low = count_B.astype('uint32'), 2**_LOW_BITS
  low_sum = jnp.sum(count_B % low, dtype='uint32')
  high = jnp.sum(count_B // low, dtype='uint32') + low_sum // low
  wanted_high, wanted_low = map(np.uint32, divmod(k, low))
  return (high > wanted_high) | (
    (high == wanted_high) & (low_sum % low >= wanted_low)
  )


def kth_largest(values: jax.Array, k: int) -> jax.Array:
  """The k-th largest of all elements, exactly, without a sort.

  Non-negative floats are ordered as their bits are, so the answer is found a
  bit at a time by counting. Over a mesh each of the 31 rounds adds up a count
  for each row, where a sort would gather every element.

  Args:
    values: float32, not negative, [..., M] of no more than `MOST_ROWS` rows and
      `MOST_LATENTS` columns.
    k: from 1 to the number of elements, which may be above 2^31.

  Returns:
    A scalar of the same dtype, without a gradient.
  """
  bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(values), 'int32')

  def set_bit(i, found):
    candidate = found | (jnp.int32(1) << (30 - i))
    count_B = jnp.sum(bits >= candidate, axis=-1, dtype='int32')
    return jnp.where(add_up_to(count_B, k), candidate, found)

  found = jax.lax.fori_loop(0, 31, set_bit, jnp.int32(0))
  return jax.lax.bitcast_convert_type(found, 'float32')
