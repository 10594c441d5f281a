"""SAEs in the form in which they are used and shared.

Raw activations in, raw ones out: scale, pre-encoder bias, decoder norms and
whatever training needed is folded into plain arrays. Whatever was trained comes
out as one of the two classes here.
"""

from __future__ import annotations

import flax.struct
import jax
from jax import numpy as jnp

from jumprelu_jax import selection
from jumprelu_jax.sae import maps


@flax.struct.dataclass
class SAE(maps.ThresholdMaps):
  """A folded SAE or transcoder with a threshold for each latent.

  Attributes:
    W_enc: encoder [D, M], float32, as all of them.
    b_enc: encoder bias [M].
    W_dec: decoder [M, D]; a row is a latent's direction, of unit norm.
    b_dec: decoder bias [D].
    threshold: thresholds [M], in the units of the latents.
    W_skip: past the latents [D, D]; None without. Of a transcoder the outer
      sides of W_dec, b_dec and W_skip are the target's.
  """

  W_enc: jax.Array
  b_enc: jax.Array
  W_dec: jax.Array
  b_dec: jax.Array
  threshold: jax.Array
  W_skip: jax.Array | None = None


@flax.struct.dataclass
class TopKSAE(maps.Maps):
  """A folded SAE or transcoder of which the k largest latents fire.

  Attributes:
    W_enc, b_enc, W_dec, b_dec, W_skip: as `SAE`.
    k: static; latents that fire at most, fewer where pre-activations are
      negative.
  """

  W_enc: jax.Array
  b_enc: jax.Array
  W_dec: jax.Array
  b_dec: jax.Array
  k: int = flax.struct.field(pytree_node=False)
  W_skip: jax.Array | None = None

  def encode(self, x_BD: jax.Array) -> jax.Array:
    """Returns the latents' activations f_BM, float32."""
    return selection.top_k(self.linear(x_BD), self.k)


Released = SAE | TopKSAE


def scale_decoder_norms(sae: SAE) -> SAE:
  """Returns the same function with decoder rows of unit norm.

  A latent's activations are multiplied by the norm of its row, and so are its
  encoder column, bias and threshold; a row of zeros stays.
  """
  norm_M = jnp.linalg.norm(sae.W_dec, axis=-1)
  norm_M = jnp.where(norm_M > 0, norm_M, 1)
  return sae.replace(
    W_enc=sae.W_enc * norm_M[None],
    b_enc=sae.b_enc * norm_M,
    W_dec=sae.W_dec / norm_M[:, None],
    threshold=sae.threshold * norm_M,
  )
