"""Sequences with special tokens all over, and models that say what they saw."""

import numpy as np

from jumprelu_jax.activations import buckets

PAD, EOS, BOS = 0, 1, 2
SPECIAL = (PAD, EOS, BOS)


def some_tokens(num_sequences, length, seed=0, vocab_size=60):
  """Rows that start with BOS; EOS, BOS and PAD are sprinkled in; int32."""
  rng = np.random.default_rng([11, seed])
  tokens_NL = rng.integers(3, vocab_size, (num_sequences, length))
  is_special_NL = rng.random(tokens_NL.shape) < rng.choice([0.05, 0.3, 0.8])
  tokens_NL[is_special_NL] = rng.choice(SPECIAL, is_special_NL.sum())
  tokens_NL[:, 0] = BOS
  tokens_NL[-1, length // 2 :] = PAD
  return tokens_NL.astype(np.int32)


def make_plan(tokens_NL, **values):
  fields = {
    'special_ids': SPECIAL,
    'pad_id': PAD,
    'sequences_per_bucket': 5,
    'sequences_per_batch': 2,
    'max_norm_multiple': 0.0,
    'seed': 0,
  }
  return buckets.Plan(tokens_NL=tokens_NL, **{**fields, **values})


def telling(tokens_BL):
  """[token, position, sum of the tokens so far] of each position; float32."""
  position_BL = np.broadcast_to(np.arange(tokens_BL.shape[1]), tokens_BL.shape)
  parts = [tokens_BL, position_BL, np.cumsum(tokens_BL, 1)]
  return np.stack(parts, axis=-1).astype(np.float32)


def tap_two(tokens_BL):
  """A tap of two sites, of sizes 3 and 2."""
  x_BLD = telling(tokens_BL)
  return x_BLD, -x_BLD[..., 1:]
