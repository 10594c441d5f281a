"""Training on the few latents of a row that count.

Of a step only the encoder's product with x has to be dense: it tells which
latents fire. All else, the decoder's product and every gradient, needs only
those that fire or are inside the estimator's window: the `Support`. A latent's
numbers lie there in slots, [K, B]; nothing of shape [B, M] is made but the
pre-activations, and nothing of shape [B, K, D] at all: loops over the slots add
up [B, D] or [M, D]. Rows are taken in the order of how full they are, some
hundreds at a time, so that a loop is as long as the fullest of these needs.

`Support` and `Everywhere` do the same for arrays of either layout, so that
architectures and objectives are written once. Both round the operands of
products to the compute dtype, and differ only in the order of sums.
"""

from __future__ import annotations

import functools
from typing import Any
from typing import NamedTuple

import flax.struct
import jax
from jax import numpy as jnp

from jumprelu_jax import ops
from jumprelu_jax import shapes

# Rows whose slots are looped over together; they stay in a core's cache.
_BLOCK_ROWS = 256
# Latents that are looked at together: finding the few groups of a row in which
# any counts, and then the latents in these, is cheaper than looking at all.
_GROUP = 16

SAE = Any  # a `sae.trained.Trained`, which is made of this


@flax.struct.dataclass
class Everywhere:
  """All latents of every row: an array of them is [B, M].

  Attributes:
    known_BM: the pre-activations, without a gradient, if they were computed
      before.
  """

  known_BM: jax.Array | None = None

  def linear(self, sae: SAE, x_BD: jax.Array) -> jax.Array:
    """Returns the pre-activations of an SAE."""
    if self.known_BM is None:
      return sae.linear(x_BD)
    return dense_linear(sae, x_BD, self.known_BM)

  def each(self, value_M: jax.Array) -> jax.Array:
    """Returns a number of each latent so that it goes with arrays of them."""
    return value_M[None]

  def kept(self, value_BM: jax.Array) -> jax.Array:
    """Returns an array of latents with 0 where no latent is."""
    return value_BM

  def per_row(self, value_BM: jax.Array) -> jax.Array:
    """Returns sums over latents, [B]."""
    return jnp.sum(value_BM, axis=1)

  def per_latent(self, value_BM: jax.Array) -> jax.Array:
    """Returns sums over rows, [M]."""
    return jnp.sum(value_BM, axis=0)

  def decode(
    self, sae: SAE, f_BM: jax.Array, bounds: tuple[int, int] | None = None
  ) -> jax.Array:
    """Returns f W_dec, [B, E]; of the latents within bounds, if any."""
    W_dec_ME = sae.W_dec
    if bounds is not None:
      f_BM, W_dec_ME = f_BM[:, slice(*bounds)], W_dec_ME[slice(*bounds)]
    return ops.matmul(f_BM, W_dec_ME, sae.compute_dtype)


@flax.struct.dataclass
class Support:
  """The latents of each row that count: an array of them is in slots, [K, B].

  Attributes:
    order_B: the rows, the fullest first; slots [:, b] are of row order_B[b].
    index_KB: latents, int32; of a row's slots the first `count_B[b]` count.
    count_B: how many count, int32; more than K where `fits` is false.
    fits: whether no row has more than K, bool.
    known_BM: the pre-activations of all latents, without a gradient; rows as
      they were.
  """

  order_B: jax.Array
  index_KB: jax.Array
  count_B: jax.Array
  fits: jax.Array
  known_BM: jax.Array

  def linear(self, sae: SAE, x_BD: jax.Array) -> jax.Array:
    """As `Everywhere.linear`; in slots that do not count, anything."""
    return _encode(sae.compute_dtype, x_BD, sae.W_enc, sae.encoder_bias(), self)

  def each(self, value_M: jax.Array) -> jax.Array:
    """As `Everywhere.each`."""
    return _each(value_M, self)

  def kept(self, value_KB: jax.Array) -> jax.Array:
    """As `Everywhere.kept`."""
    return jnp.where(self._counts_KB(), value_KB, 0)

  def per_row(self, value_KB: jax.Array) -> jax.Array:
    """As `Everywhere.per_row`; of values that were `kept`."""
    return jnp.sum(value_KB, axis=0)[self.back_B()]

  def per_latent(self, value_KB: jax.Array) -> jax.Array:
    """As `Everywhere.per_latent`; of values that were `kept`."""
    return _per_latent(value_KB, self)

  def back_B(self) -> jax.Array:
    """Returns where each row lies in the order."""
    return jnp.argsort(self.order_B)

  def decode(
    self, sae: SAE, f_KB: jax.Array, bounds: tuple[int, int] | None = None
  ) -> jax.Array:
    """As `Everywhere.decode`; of values that were `kept`."""
    if bounds is not None:
      low, high = bounds
      is_within_KB = (self.index_KB >= low) & (self.index_KB < high)
      f_KB = jnp.where(is_within_KB, f_KB, 0)
    return _decode(sae.compute_dtype, f_KB, sae.W_dec, self)

  def spread(self, value_KB: jax.Array, others_BM: jax.Array) -> jax.Array:
    """Returns [B, M]: the slots' values, and others where no slot counts."""
    nowhere = others_BM.shape[1]
    index_KB = jnp.where(self._counts_KB(), self.index_KB, nowhere)
    places = self.order_B[None], index_KB
    return others_BM.at[places].set(value_KB, mode='drop')

  def _counts_KB(self):
    """Returns which slots count."""
    return jnp.arange(len(self.index_KB))[:, None] < self.count_B[None]


Latents = Everywhere | Support
#: Of which nothing is known.
EVERYWHERE = Everywhere()

# Measured on CPU (docs/benchmarks.md): a slot costs about a hundredth of an
# encoder's product with 9,216 latents, and to find the support two fifths.
_LATENTS_PER_SLOT = 64
_FEWEST_LATENTS = 4096


def suggested(num_latents: int) -> int:
  """Returns the capacity at which sparse steps pay off; 0 if none does."""
  if num_latents < _FEWEST_LATENTS:
    return 0
  return num_latents // _LATENTS_PER_SLOT


def find(pre_BM: jax.Array, counts_BM: jax.Array, capacity: int) -> Support:
  """Returns the support of a mask.

  Args:
    pre_BM: pre-activations.
    counts_BM: True where a latent counts.
    capacity: slots of a row, K.
  """
  shapes.check(pre_BM=pre_BM, counts_BM=counts_BM)
  _, M = counts_BM.shape
  count_B = jnp.sum(counts_BM, axis=1, dtype='int32')
  if M % _GROUP or capacity >= M // _GROUP:
    index_BK = _first(counts_BM, min(capacity, M))
  else:
    index_BK = _first_by_groups(counts_BM, capacity)
  order_B = jnp.argsort(-count_B)
  return Support(
    order_B,
    index_BK[order_B].T,
    count_B[order_B],
    jnp.all(count_B <= capacity),
    jax.lax.stop_gradient(pre_BM),
  )


def all_of(pre_BM: jax.Array, index_BK: jax.Array) -> Support:
  """Returns the support of K latents of every row."""
  B, K = index_BK.shape
  return Support(
    jnp.arange(B),
    index_BK.T,
    jnp.full(B, K, 'int32'),
    jnp.bool_(True),
    jax.lax.stop_gradient(pre_BM),
  )


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


def dense_linear(sae: SAE, x_BD: jax.Array, known_BM: jax.Array) -> jax.Array:
  """Returns an SAE's pre-activations, which are known, with their gradients."""
  return _attach(
    sae.compute_dtype, x_BD, sae.W_enc, sae.encoder_bias(), known_BM
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attach(compute_dtype, x_BD, W_enc_DM, bias_M, known_BM):
  del compute_dtype, x_BD, W_enc_DM, bias_M
  return known_BM


def _attach_fwd(compute_dtype, x_BD, W_enc_DM, bias_M, known_BM):
  del compute_dtype, bias_M
  return known_BM, (x_BD, W_enc_DM)


def _attach_bwd(compute_dtype, residuals, g_BM):
  x_BD, W_enc_DM = residuals
  # The first is of no use to SAEs, whose input is data: it is compiled away.
  d_x_BD = ops.matmul(g_BM, W_enc_DM.T, compute_dtype)
  d_W_DM = ops.matmul(x_BD.T, g_BM, compute_dtype)
  return d_x_BD, d_W_DM, jnp.sum(g_BM, axis=0), None


_attach.defvjp(_attach_fwd, _attach_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _encode(compute_dtype, x_BD, W_enc_DM, bias_M, support):
  """The pre-activations in the slots, with the gradients of x W + bias."""
  del compute_dtype, x_BD, W_enc_DM, bias_M
  return support.known_BM[support.order_B[None], support.index_KB]


def _encode_fwd(compute_dtype, x_BD, W_enc_DM, bias_M, support):
  out_KB = _encode(compute_dtype, x_BD, W_enc_DM, bias_M, support)
  return out_KB, (x_BD, W_enc_DM, support)


def _encode_bwd(compute_dtype, residuals, g_KB):
  x_BD, W_enc_DM, support = residuals
  g_KB = support.kept(g_KB)
  sum_MD = _add_outer(
    _rounded(g_KB, compute_dtype),
    _rounded(x_BD[support.order_B], compute_dtype),
    support,
    W_enc_DM.shape[1],
  )
  # The bias is in no product: its gradient is not rounded.
  return jnp.zeros_like(x_BD), sum_MD.T, _per_latent(g_KB, support), None


_encode.defvjp(_encode_fwd, _encode_bwd)


@jax.custom_vjp
def _each(value_M, support):
  """A number of each latent, in the slots."""
  return value_M[support.index_KB]


def _each_fwd(value_M, support):
  return _each(value_M, support), support


def _each_bwd(support, g_KB):
  return _per_latent(support.kept(g_KB), support), None


_each.defvjp(_each_fwd, _each_bwd)


@jax.custom_vjp
def _per_latent(value_KB, support):
  """Sums over rows of the slots' values."""

  def add(sum_M, index_R, value_R):
    return sum_M.at[index_R].add(value_R)

  zeros_M = jnp.zeros(support.known_BM.shape[1], value_KB.dtype)

  def add_block(block, sum_M):
    index_KR, value_KR = block.of(support.index_KB), block.of(value_KB)
    return block.loop(lambda k, s: add(s, index_KR[k], value_KR[k]), sum_M)

  return _over_blocks(support, add_block, zeros_M)


def _per_latent_fwd(value_KB, support):
  return _per_latent(value_KB, support), support


def _per_latent_bwd(support, g_M):
  return support.kept(g_M[support.index_KB]), None


_per_latent.defvjp(_per_latent_fwd, _per_latent_bwd)


def _rounded(operand, compute_dtype):
  """Rounds an operand of a product as `ops.matmul` does; stays float32.

  Not by converting there and back, which compilers may leave out.
  """
  if operand.dtype == compute_dtype:
    return operand
  kind = jnp.finfo(compute_dtype)
  return jax.lax.reduce_precision(operand, kind.nexp, kind.nmant)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _decode(compute_dtype, f_KB, W_dec_ME, support):
  """F W_dec, [B, E], float32, rows as they were."""
  f_KB, W_dec_ME = (_rounded(a, compute_dtype) for a in (f_KB, W_dec_ME))

  def add_block(block, y_BE):
    index_KR, f_KR = block.of(support.index_KB), block.of(f_KB)

    def add(k, y_RE):
      return y_RE + f_KR[k][:, None] * W_dec_ME[index_KR[k]]

    zeros_RE = jnp.zeros((block.rows, W_dec_ME.shape[1]))
    return block.put(y_BE, block.loop(add, zeros_RE))

  zeros_BE = jnp.zeros((f_KB.shape[1], W_dec_ME.shape[1]))
  return _over_blocks(support, add_block, zeros_BE)[support.back_B()]


def _decode_fwd(compute_dtype, f_KB, W_dec_ME, support):
  y_BE = _decode(compute_dtype, f_KB, W_dec_ME, support)
  return y_BE, (f_KB, W_dec_ME, support)


def _decode_bwd(compute_dtype, residuals, g_BE):
  *operands, support = residuals
  operands.append(g_BE[support.order_B])
  f_KB, W_dec_ME, g_BE = (_rounded(a, compute_dtype) for a in operands)

  def dot_block(block, d_f_KB):
    index_KR, g_RE = block.of(support.index_KB), block.of_rows(g_BE)

    def dot(k, d_f_KR):
      rows_RE = W_dec_ME[index_KR[k]]
      return d_f_KR.at[k].set(jnp.sum(rows_RE * g_RE, axis=1))

    zeros_KR = jnp.zeros((len(f_KB), block.rows))
    return block.put(d_f_KB, block.loop(dot, zeros_KR), axis=1)

  d_f_KB = _over_blocks(support, dot_block, jnp.zeros_like(f_KB))
  d_W_ME = _add_outer(f_KB, g_BE, support, len(W_dec_ME))
  return support.kept(d_f_KB), d_W_ME, None


_decode.defvjp(_decode_fwd, _decode_bwd)


def _add_outer(value_KB, a_BD, support, num_latents):
  """Returns the sum over rows of value (outer) a at their latents, [M, D].

  Rows of a are in the support's order.
  """

  def add_block(block, sum_MD):
    index_KR, value_KR = block.of(support.index_KB), block.of(value_KB)
    a_RD = block.of_rows(a_BD)

    def add(k, sum_MD):
      return sum_MD.at[index_KR[k]].add(value_KR[k][:, None] * a_RD)

    return block.loop(add, sum_MD)

  zeros_MD = jnp.zeros((num_latents, a_BD.shape[1]))
  return _over_blocks(support, add_block, zeros_MD)


class _Block(NamedTuple):
  """Some rows of a support, and as many slots as the fullest of them has."""

  first: jax.Array
  rows: int
  most: jax.Array

  def of(self, value_KB):
    """Returns the rows' slots."""
    return jax.lax.dynamic_slice_in_dim(value_KB, self.first, self.rows, axis=1)

  def of_rows(self, value_BD):
    """Returns the rows."""
    return jax.lax.dynamic_slice_in_dim(value_BD, self.first, self.rows)

  def put(self, whole, part, axis=0):
    """Returns an array with the rows' part in its place."""
    return jax.lax.dynamic_update_slice_in_dim(whole, part, self.first, axis)

  def loop(self, body, carry):
    """Returns what is carried over the slots."""
    return jax.lax.fori_loop(0, self.most, body, carry)


def _over_blocks(support, body, carry):
  """Returns what (block, carry) → carry makes of all blocks of rows."""
  B = len(support.count_B)
  rows = _BLOCK_ROWS if B % _BLOCK_ROWS == 0 else B

  def one(i, carry):
    first = i * rows
    most = support.count_B[first]  # the fullest comes first
    return body(_Block(first, rows, most), carry)

  return jax.lax.fori_loop(0, B // rows, one, carry)
