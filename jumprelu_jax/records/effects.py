"""What a latent's direction does to the logits, without the layers between."""

from __future__ import annotations

from collections.abc import Iterator
import functools

import jax
from jax import numpy as jnp
import numpy as np

from jumprelu_jax import products
from jumprelu_jax.lm import sites
from jumprelu_jax.lm import transformer

# Logits that are held at a time, 64 MB of them.
_LOGITS = 2**24


def directions(
  model: transformer.Transformer, target: sites.Site, W_dec_ME: jax.Array
) -> jax.Array | None:
  """Returns what each latent adds to the residual stream [M, D], or None.

  Args:
    model: with the site's layer.
    target: what the latents are of, or a transcoder's target. Heads' outputs
      go through W_O first; what an MLP reads adds nothing itself: None.
    W_dec_ME: decoder.
  """
  if target.name == 'mlp_in':
    return None
  if target.name != 'attn_z':
    return W_dec_ME
  blocks = jax.tree.map(lambda p: p[target.layer], model.blocks)
  W_o_HKD = blocks.W_o_HKD.astype('float32')
  W_dec_MD = products.matmul(W_dec_ME, W_o_HKD.reshape(-1, W_o_HKD.shape[-1]))
  if blocks.post_attn_norm_D is None:
    return W_dec_MD
  return W_dec_MD * _gain(model, blocks.post_attn_norm_D)[None]


def extremes(
  model: transformer.Transformer, direction_MD: jax.Array, count: int
) -> Iterator[tuple[np.ndarray, ...]]:
  """Yields the largest and smallest effects of blocks of latents.

  The direction through the final norm's gain and the unembedding; the norm's
  own scale, one for all tokens, and a soft cap are left out.

  Args:
    model: whose final norm and unembedding are read.
    direction_MD: of each latent.
    count: K, of tokens.

  Yields:
    Tokens raised most [b, K] and by how much, float32; tokens lowered most and
    by how much, negative. Blocks are in the order of the latents.
  """
  head_VD = model.embed_VD if model.head_VD is None else model.head_VD
  V, M = len(head_VD), len(direction_MD)
  rows = max(1, _LOGITS // V)
  gain_D = _gain(model, model.final_norm_D)
  is_centred = model.architecture.norm == 'layer'
  for start in range(0, M, rows):
    block_bD = direction_MD[start : start + rows]
    yield jax.device_get(
      _extremes(block_bD, gain_D, head_VD, is_centred, min(count, V))
    )


@functools.partial(jax.jit, static_argnames=('is_centred', 'count'))
def _extremes(block_bD, gain_D, head_VD, is_centred, count):
  if is_centred:  # LayerNorm takes the mean off
    block_bD -= jnp.mean(block_bD, axis=1, keepdims=True)
  effect_bV = products.matmul(
    block_bD * gain_D[None], head_VD.astype('float32').T
  )
  most_bK, raised_bK = jax.lax.top_k(effect_bV, count)
  least_bK, lowered_bK = jax.lax.top_k(-effect_bV, count)
  return raised_bK, most_bK, lowered_bK, -least_bK


def _gain(model, norm_D):
  """Returns the factors of a norm, which some families keep less 1."""
  norm_D = norm_D.astype('float32')
  return 1 + norm_D if model.architecture.norm == 'rms_plus_one' else norm_D
