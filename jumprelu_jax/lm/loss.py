"""The next-token loss and which positions count."""

from __future__ import annotations

import jax
from jax import numpy as jnp

from jumprelu_jax.text import packing


def next_token_loss(
  logits_BLV: jax.Array, tokens_BL: jax.Array, special: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
  """Returns the cross-entropy of each next token and which ones count.

  Args:
    logits_BLV: next-token logits, float32.
    tokens_BL: the tokens that gave the logits, int32.
    special: ids of BOS, EOS and PAD.

  Returns:
    loss_BL: nats, float32; 0 at the last position, which has no next token.
    counts_BL: float32, 1 where neither the token nor the next is special.
  """
  targets_BL = tokens_BL[:, 1:]
  loss_BL = jax.nn.logsumexp(logits_BLV[:, :-1], axis=-1)
  loss_BL -= jnp.take_along_axis(
    logits_BLV[:, :-1], targets_BL[..., None], axis=-1
  )[..., 0]
  is_text_BL = packing.is_text(tokens_BL, special)
  counts_BL = (is_text_BL[:, :-1] & is_text_BL[:, 1:]).astype('float32')
  last = ((0, 0), (0, 1))
  return jnp.pad(loss_BL, last), jnp.pad(counts_BL, last)
