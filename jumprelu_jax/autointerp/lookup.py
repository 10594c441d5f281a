"""Explanations that are tables: the mean activation of a token, or of two.

What a table explains needs no language model to explain. A latent that beats it
by nothing is a latent of single tokens (Bills et al. 2023 have the same
baseline).
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence

import numpy as np

from jumprelu_jax.autointerp.windows import Window

#: Windows' tokens [L] → predicted activations [L].
Lookup = Callable[[np.ndarray], np.ndarray]

_NO_TOKEN = -1  # before a window's first
_SHIFT = 1 << 32


def fit_tokens(windows: Sequence[Window]) -> Lookup:
  """Returns a table of the mean activation at each token.

  A token that is in none of the windows gets the mean of all.
  """
  means = _means(_all_tokens(windows), _all_activations(windows))
  overall = float(_all_activations(windows).mean())
  return lambda tokens_L: _look_up(means, tokens_L, overall)


def fit_bigrams(windows: Sequence[Window]) -> Lookup:
  """Returns a table of the mean activation at each token after each other.

  A pair that is in none of the windows gets what `fit_tokens` gives; so does a
  window's first token, unless another window begins with it.
  """
  by_token = fit_tokens(windows)
  pairs = np.concatenate([_pairs(window.tokens_L) for window in windows])
  means = _means(pairs, _all_activations(windows))
  return lambda tokens_L: _look_up(means, _pairs(tokens_L), by_token(tokens_L))


#: Tables by the names of their scores.
LOOKUPS = {'token_lookup': fit_tokens, 'bigram_lookup': fit_bigrams}


def _all_tokens(windows):
  return np.concatenate([window.tokens_L for window in windows])


def _all_activations(windows):
  return np.concatenate([window.activations_L for window in windows])


def _pairs(tokens_L):
  """Returns one number for each token and the one before it."""
  tokens_L = np.asarray(tokens_L, 'int64')
  before_L = np.append(_NO_TOKEN, tokens_L[:-1])
  return before_L * _SHIFT + tokens_L


def _means(keys_T, values_T):
  keys_K, place_T = np.unique(keys_T, return_inverse=True)
  return keys_K, np.bincount(place_T, values_T) / np.bincount(place_T)


def _look_up(means, keys_L, otherwise):
  keys_K, means_K = means
  place_L = np.searchsorted(keys_K, keys_L).clip(max=len(keys_K) - 1)
  return np.where(keys_K[place_L] == keys_L, means_K[place_L], otherwise)
