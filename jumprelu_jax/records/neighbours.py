"""The nearest latents of each, by decoder and by firing together.

In blocks of latents: nothing of size M * M is ever held.
"""

from __future__ import annotations

from collections.abc import Iterator
import functools

import jax
from jax import numpy as jnp
import numpy as np
from scipy import sparse

from jumprelu_jax import products

# Pairs of latents that are held at a time: 64 MB of cosines, and as many
# entries of a sparse matrix.
_PAIRS = 2**24
# In the sample a pair has to fire together as often as this: two latents that
# fired once each, at one position, are not for that the same latent.
_LEAST_TOGETHER = 2


def by_decoder(
  W_dec_ME: jax.Array, count: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields the latents whose decoder rows have the largest cosines.

  Args:
    W_dec_ME: decoder.
    count: K, neighbours of a latent.

  Yields:
    Latents [b, K], nearest first, and cosines, float32, for blocks of latents
    in their order. A row of zeros has cosine 0 with all.
  """
  M = len(W_dec_ME)
  norm_M1 = jnp.linalg.norm(W_dec_ME, axis=1, keepdims=True)
  unit_ME = W_dec_ME / jnp.where(norm_M1 > 0, norm_M1, 1)
  rows = max(1, _PAIRS // M)
  for start in range(0, M, rows):
    block_bE = unit_ME[start : start + rows]
    yield jax.device_get(_nearest(block_bE, unit_ME, start, min(count, M - 1)))


def by_firing(
  place_E: np.ndarray, latent_E: np.ndarray, num_latents: int, count: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields the latents that most often fire at the same positions.

  Nearness is intersection over union (Jaccard) of the positions at which two
  latents fire; pairs that fire together less than twice are left out.

  Args:
    place_E: the position of each firing of a sample of positions.
    latent_E: whose it is.
    num_latents: M.
    count: K, neighbours of a latent.

  Yields:
    Latents [b, K], nearest first, and Jaccard, float32, 0 where there are
    fewer; for blocks of latents in their order.
  """
  _, row_E = np.unique(place_E, return_inverse=True)
  rows = int(row_E.max(initial=-1)) + 1
  fires = sparse.csc_array(
    (np.ones(len(row_E), np.int32), (row_E, latent_E)),
    shape=(rows, num_latents),
  )
  fires.sort_indices()
  by_position = fires.tocsr()
  fired_M = np.diff(fires.indptr)
  # A latent has as many pairs, at most, as fire where it fires.
  active_P = np.diff(by_position.indptr).astype(np.int64)
  pairs_M = fires.T @ active_P
  for start, stop in _blocks(np.minimum(pairs_M, num_latents)):
    shared = (fires[:, start:stop].T @ by_position).tocoo()
    yield _best_together(shared, fired_M, start, stop, count)


def _best_together(shared, fired_M, start, stop, count):
  latent, other = shared.coords
  is_pair = (latent + start != other) & (shared.data >= _LEAST_TOGETHER)
  latent, other, both = latent[is_pair], other[is_pair], shared.data[is_pair]
  union = fired_M[latent + start] + fired_M[other] - both
  jaccard = (both / union).astype(np.float32)
  order = np.lexsort((other, -jaccard, latent))
  latent, other, jaccard = latent[order], other[order], jaccard[order]
  rank = np.arange(len(latent)) - np.searchsorted(latent, latent)
  is_near = rank < count
  near_bK = np.zeros((stop - start, count), np.int32)
  jaccard_bK = np.zeros((stop - start, count), np.float32)
  near_bK[latent[is_near], rank[is_near]] = other[is_near]
  jaccard_bK[latent[is_near], rank[is_near]] = jaccard[is_near]
  return near_bK, jaccard_bK


def _blocks(pairs_M):
  """Yields (start, stop) of latents that have _PAIRS pairs at most, or one."""
  start, total = 0, 0
  for latent, pairs in enumerate(pairs_M.tolist()):
    if latent > start and total + pairs > _PAIRS:
      yield start, latent
      start, total = latent, 0
    total += pairs
  yield start, len(pairs_M)


@functools.partial(jax.jit, static_argnames='count')
def _nearest(block_bE, unit_ME, start, count):
  cosine_bM = products.matmul(block_bE, unit_ME.T)
  own_b = start + jnp.arange(len(block_bE))
  is_own_bM = jnp.arange(len(unit_ME))[None] == own_b[:, None]
  cosine_bK, near_bK = jax.lax.top_k(
    jnp.where(is_own_bM, -jnp.inf, cosine_bM), count
  )
  return near_bK, cosine_bK
