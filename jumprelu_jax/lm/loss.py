"""What is made of logits: the next-token loss, and whatever a caller wants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import numpy as jnp

from jumprelu_jax.lm import transformer
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
  counts_BL = packing.predicts_text(tokens_BL, special).astype('float32')
  last = ((0, 0), (0, 1))
  return jnp.pad(loss_BL, last), jnp.pad(counts_BL, last)


def at_predictions(
  fn: Callable,
  model: transformer.Transformer,
  tokens_BL: jax.Array,
  *streams_BLD: jax.Array,
  positions: int,
) -> Any:
  """Returns a function of logits at all positions that have a next token.

  Logits are held for some positions at a time: of a whole batch they would be
  the largest array by far, in a gradient too, where they are made again. On a
  CPU, whose caches hold so few, it is faster besides.

  Args:
    fn: (logits [B, V] of each stream, next tokens [B]) → a tree of [B].
    model: the model.
    tokens_BL: the tokens that gave the streams.
    *streams_BLD: residual streams at the end, as `transformer.residual` gives.
    positions: of each sequence at a time.

  Returns:
    The tree, of [B, L - 1].
  """

  def at_one(args):
    *streams_BD, target_B = args
    logits_BV = [
      transformer.unembed(model, x_BD[:, None])[:, 0] for x_BD in streams_BD
    ]
    return fn(*logits_BV, target_B)

  streams_LBD = [x_BLD[:, :-1].swapaxes(0, 1) for x_BLD in streams_BLD]
  found_LB = jax.lax.map(
    jax.checkpoint(at_one),
    (*streams_LBD, tokens_BL[:, 1:].T),
    batch_size=positions,
  )
  return jax.tree.map(jnp.transpose, found_LB)
