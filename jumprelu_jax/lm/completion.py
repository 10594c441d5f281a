"""The likeliest continuation of a text, token by token."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence

import jax
from jax import numpy as jnp
import numpy as np

from jumprelu_jax import errors
from jumprelu_jax.lm import transformer

# Lengths are rounded up to multiples: a program for each multiple, not for each
# length.
_MULTIPLE = 64


def greedy(
  model: transformer.Transformer,
  tokens: Sequence[int],
  count: int,
  is_done: Callable[[list[int]], bool],
) -> list[int]:
  """Continues a text with the token of the largest logit, again and again.

  Every token costs a pass over the whole text so far: nothing is kept from one
  to the next.

  Args:
    model: the model.
    tokens: ids to continue, BOS first where the model wants it.
    count: new tokens, at most.
    is_done: new tokens so far → whether they are enough.

  Returns:
    The new tokens; fewer than `count` where they are enough, or where the
    model's positions end.

  Raises:
    errors.InputError: the text is empty or leaves no position.
  """
  limit = model.architecture.max_positions
  if not 0 < len(tokens) < limit:
    raise errors.InputError(
      f'the text has {len(tokens)} tokens; expected 1 to {limit - 1}.'
    )
  new = []
  while len(new) < count and len(tokens) + len(new) < limit and (
    not new or not is_done(new)
  ):  # fmt: skip
    text = [*tokens, *new]
    padded_1L = np.full((1, _padded(len(text), limit)), text[-1], np.int32)
    padded_1L[0, : len(text)] = text
    new.append(int(_next(model, padded_1L, len(text) - 1)))
  return new


def _padded(length, limit):
  return min(-(-length // _MULTIPLE) * _MULTIPLE, limit)


@jax.jit
def _next(model, tokens_1L, position):
  """Returns the likeliest token after a position; later ones do not count."""
  x_1LD = transformer.residual(model, tokens_1L)
  x_11D = jax.lax.dynamic_slice_in_dim(x_1LD, position, 1, axis=1)
  return jnp.argmax(transformer.unembed(model, x_11D)[0, 0])
