"""Products with the decoder and encoder where few latents of a row count.

Of a training step only the encoder's product with x has to be dense: it tells
which latents fire. Everything after it, the decoder's product and the gradients
of both, needs only those that fire or are inside the estimator's window: the
`Support`. These functions are the dense products where that is so, up to the
order of sums, and fall back to them, in the same program, where a row has more
than the capacity.

Nothing of shape [B, K, D] is ever made: loops run over slots, as many as the
fullest row has, and add up [B, D] or [M, D].
"""

from __future__ import annotations

import functools

import flax.struct
import jax
from jax import numpy as jnp

from jumprelu_jax import ops
from jumprelu_jax import shapes

# Latents that are looked at together: finding the few groups of a row in which
# any counts, and then the latents in these, is cheaper than looking at all.
_GROUP = 16


@flax.struct.dataclass
class Support:
  """The latents of each row that count.

  Attributes:
    index_KB: latents, int32; of row b the first `count_B[b]` slots count.
    count_B: how many count, int32; more than K where `fits` is false.
    fits: whether no row has more than K, bool.
  """

  index_KB: jax.Array
  count_B: jax.Array
  fits: jax.Array

  @property
  def most(self) -> jax.Array:
    """Slots of the fullest row."""
    return jnp.max(self.count_B)

  def values(self, a_BM: jax.Array) -> jax.Array:
    """Returns an array's values in the slots, 0 in those that do not count."""
    value_BK = jnp.take_along_axis(a_BM, self.index_KB.T, axis=1)
    return jnp.where(self._is_used(), value_BK.T, 0)

  def spread(self, value_KB: jax.Array, num_latents: int) -> jax.Array:
    """Returns the slots' values at their latents, [B, M], 0 elsewhere."""
    K, B = value_KB.shape
    value_KB = jnp.where(self._is_used(), value_KB, 0)
    rows_KB = jnp.broadcast_to(jnp.arange(B)[None], (K, B))
    zeros_BM = jnp.zeros((B, num_latents), value_KB.dtype)
    # Slots that do not count may name any latent: they add 0.
    return zeros_BM.at[rows_KB, self.index_KB].add(
      value_KB, mode='promise_in_bounds'
    )

  def _is_used(self):
    slot_K1 = jnp.arange(len(self.index_KB))[:, None]
    return slot_K1 < self.count_B[None]


# Measured on CPU: a slot costs about 1/340 of the dense products that it saves,
# with 9,216 latents, and finding the support is not free.
_LATENTS_PER_SLOT = 64
_FEWEST_LATENTS = 4096


def suggested(num_latents: int) -> int:
  """Returns the capacity at which sparse products pay off; 0 if none does."""
  if num_latents < _FEWEST_LATENTS:
    return 0
  return num_latents // _LATENTS_PER_SLOT


def find(counts_BM: jax.Array, capacity: int) -> Support:
  """Returns the support of a mask.

  Args:
    counts_BM: True where a latent counts.
    capacity: slots of a row, K.
  """
  shapes.check(counts_BM=counts_BM)
  _, M = counts_BM.shape
  count_B = jnp.sum(counts_BM, axis=1, dtype='int32')
  if M % _GROUP or capacity >= M // _GROUP:
    index_BK = _first(counts_BM, min(capacity, M))
  else:
    index_BK = _first_by_groups(counts_BM, capacity)
  return Support(index_BK.T, count_B, jnp.all(count_B <= capacity))


def all_of(index_BK: jax.Array) -> Support:
  """Returns the support of K latents of every row."""
  B, K = index_BK.shape
  return Support(index_BK.T, jnp.full(B, K, 'int32'), jnp.bool_(True))


def _first(mask_BM, k):
  """Returns the indices of the first k that are set of each row, [B, k]."""
  _, index_BK = jax.lax.top_k(mask_BM.astype('float32'), k)
  return index_BK  # ties are in order of the index


def _first_by_groups(mask_BM, k):
  """The same by way of the first k groups in which any is set."""
  B, M = mask_BM.shape
  mask_BGM = mask_BM.reshape(B, M // _GROUP, _GROUP)
  group_BK = _first(jnp.any(mask_BGM, axis=2), k)
  inside_BKM = jnp.take_along_axis(mask_BGM, group_BK[..., None], axis=1)
  place_BK = _first(inside_BKM.reshape(B, k * _GROUP), k)
  group_BK = jnp.take_along_axis(group_BK, place_BK // _GROUP, axis=1)
  return group_BK * _GROUP + place_BK % _GROUP


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attach(
  compute_dtype: str,
  pre_BM: jax.Array,
  x_BD: jax.Array,
  W_enc_DM: jax.Array,
  support: Support | None,
) -> jax.Array:
  """Returns pre_BM, with the gradients of x W_enc.

  Args:
    compute_dtype: of the inputs of dense products.
    pre_BM: x W_enc, float32, without a gradient; what it was found from.
    x_BD: input.
    W_enc_DM: encoder.
    support: outside of which the gradient by the result is 0; None for any.
  """
  del compute_dtype, x_BD, W_enc_DM, support
  return pre_BM


def _attach_fwd(compute_dtype, pre_BM, x_BD, W_enc_DM, support):
  del compute_dtype
  return pre_BM, (x_BD, W_enc_DM, support)


def _attach_bwd(compute_dtype, residuals, g_BM):
  x_BD, W_enc_DM, support = residuals

  def sparse():
    d_W_MD = _add_outer(support.values(g_BM), x_BD, support, g_BM.shape[1])
    return d_W_MD.T

  def dense():
    return ops.matmul(x_BD.T, g_BM, compute_dtype)

  if support is None:
    d_W_DM = dense()
  else:
    d_W_DM = jax.lax.cond(support.fits, sparse, dense)
  # Of no use to SAEs, whose input is data: the compiler leaves it out.
  d_x_BD = ops.matmul(g_BM, W_enc_DM.T, compute_dtype)
  return jnp.zeros_like(g_BM), d_x_BD, d_W_DM, None


attach.defvjp(_attach_fwd, _attach_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def decode(
  compute_dtype: str, f_BM: jax.Array, W_dec_MD: jax.Array, support: Support
) -> jax.Array:
  """Returns f W_dec, [B, D], float32.

  The gradient by f is given on the support alone, and 0 elsewhere.

  Args:
    compute_dtype: of the inputs of dense products.
    f_BM: activations, 0 outside of the support.
    W_dec_MD: decoder.
    support: latents that fire, or whose gradient is wanted.
  """

  def sparse():
    f_KB = support.values(f_BM)

    def add(k, y_BD):
      return y_BD + f_KB[k][:, None] * W_dec_MD[support.index_KB[k]]

    zeros_BD = jnp.zeros((len(f_BM), W_dec_MD.shape[1]))
    return jax.lax.fori_loop(0, support.most, add, zeros_BD)

  def dense():
    return ops.matmul(f_BM, W_dec_MD, compute_dtype)

  return jax.lax.cond(support.fits, sparse, dense)


def _decode_fwd(compute_dtype, f_BM, W_dec_MD, support):
  y_BD = decode(compute_dtype, f_BM, W_dec_MD, support)
  return y_BD, (f_BM, W_dec_MD, support)


def _decode_bwd(compute_dtype, residuals, g_BD):
  f_BM, W_dec_MD, support = residuals
  M = len(W_dec_MD)

  def sparse():
    f_KB = support.values(f_BM)

    def dot(k, d_f_KB):
      rows_BD = W_dec_MD[support.index_KB[k]]
      return d_f_KB.at[k].set(jnp.sum(rows_BD * g_BD, axis=1))

    d_f_KB = jax.lax.fori_loop(0, support.most, dot, jnp.zeros_like(f_KB))
    return support.spread(d_f_KB, M), _add_outer(f_KB, g_BD, support, M)

  def dense():
    return (
      ops.matmul(g_BD, W_dec_MD.T, compute_dtype),
      ops.matmul(f_BM.T, g_BD, compute_dtype),
    )

  d_f_BM, d_W_MD = jax.lax.cond(support.fits, sparse, dense)
  return d_f_BM, d_W_MD, None


decode.defvjp(_decode_fwd, _decode_bwd)


def _add_outer(value_KB, a_BD, support, num_latents):
  """Returns the sum over rows of value (outer) a at their latents, [M, D]."""

  def add(k, sum_MD):
    return sum_MD.at[support.index_KB[k]].add(value_KB[k][:, None] * a_BD)

  zeros_MD = jnp.zeros((num_latents, a_BD.shape[1]))
  return jax.lax.fori_loop(0, support.most, add, zeros_MD)
