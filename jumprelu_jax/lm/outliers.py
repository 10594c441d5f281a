"""Positions whose norms are far above the usual, such as attention sinks.

A filtered harvest drops them (`activations.buckets`), so that an SAE is not
trained on them; what measures the SAE leaves the same positions out.
"""

from __future__ import annotations

import functools

import jax
from jax import numpy as jnp
import numpy as np

from jumprelu_jax.lm import sites
from jumprelu_jax.lm import transformer

#: Largest norm at each site; () leaves nothing out.
Limits = tuple[tuple[sites.Site, float], ...]


def are_within(
  model: transformer.Transformer, tokens_BL: jax.Array, limits: Limits
) -> jax.Array:
  """Returns where no norm is above its limit, bool [B, L].

  Args:
    model: with the layers of all sites.
    tokens_BL: token ids.
    limits: of each site.
  """
  if not limits:
    return jnp.ones(tokens_BL.shape, bool)
  where, largest_S = zip(*limits, strict=True)
  return _are_within(model, tokens_BL, np.float32(largest_S), where)


@functools.partial(jax.jit, static_argnames='where')
def _are_within(model, tokens_BL, largest_S, where):
  found = transformer.tap(model, tokens_BL, where)
  norm_SBL = jnp.stack(
    [jnp.linalg.norm(x_BLD.astype('float32'), axis=-1) for x_BLD in found]
  )
  # NaN and infinity are no outliers but a failing model, as in a harvest.
  is_above = (norm_SBL > largest_S[:, None, None]) & jnp.isfinite(norm_SBL)
  return ~jnp.any(is_above, axis=0)
