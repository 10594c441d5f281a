"""Text that a language model goes on with."""

from __future__ import annotations

import jax
from jax import numpy as jnp

from jumprelu_jax.lm import sites
from jumprelu_jax.lm import transformer


def generate(
  model: transformer.Transformer,
  tokens_L: jax.Array,
  count: int,
  hooks: sites.Hooks = sites.NO_HOOKS,
  *,
  temperature: float = 0.0,
  key: jax.Array | None = None,
) -> jax.Array:
  """Returns the tokens [count], int32, that follow some tokens.

  Every token runs the model over all positions again: there is no cache of keys
  and values, so that hooks may change anything. For a notebook's paragraph.

  Args:
    model: parameters.
    tokens_L: the text so far, int32.
    count: how many are wanted.
    hooks: what to call where; they see all positions, also the ones that are
      not written yet, which no earlier position attends to.
    temperature: logits are divided by it; 0 takes the likeliest token.
    key: consumed; needed where temperature is not 0.
  """
  length = len(tokens_L)
  keys = jax.random.split(jax.random.key(0) if key is None else key, count)

  @jax.jit
  def extend(model, tokens_T, position, key):
    logits_V = transformer.logits(model, tokens_T[None], hooks)[0, position]
    if temperature:
      token = jax.random.categorical(key, logits_V / temperature)
    else:
      token = jnp.argmax(logits_V)
    return tokens_T.at[position + 1].set(token.astype('int32'))

  pad = model.architecture.pad_id
  tokens_T = jnp.pad(
    jnp.asarray(tokens_L, 'int32'), (0, count), constant_values=pad
  )
  for position, one in enumerate(keys, start=length - 1):
    tokens_T = extend(model, tokens_T, position, one)
  return tokens_T[length:]
