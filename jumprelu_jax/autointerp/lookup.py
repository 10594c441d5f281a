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

#: Windows → predicted activations of all their tokens, one after the other.
Lookup = Callable[[Sequence[Window]], np.ndarray]

_NO_TOKEN = -1  # before a window's first
_SHIFT = 1 << 32


def fit_tokens(windows: Sequence[Window]) -> Lookup:
  """Returns a table of the mean activation at each token.

  A token that is in none of the windows gets the mean of all.
  """
  means = _means(_all_tokens(windows), _all_activations(windows))
  overall = float(_all_activations(windows).mean())
  return lambda some: _look_up(means, _all_tokens(some), overall)


def fit_bigrams(windows: Sequence[Window]) -> Lookup:
  """Returns a table of the mean activation at each token after each other.

  A pair that is in none of the windows gets what `fit_tokens` gives; so does a
  window's first token, unless another window begins with it.
  """
  by_token = fit_tokens(windows)
  means = _means(_all_pairs(windows), _all_activations(windows))
  return lambda some: _look_up(means, _all_pairs(some), by_token(some))


#: Tables by the names of their scores.
LOOKUPS = {'token_lookup': fit_tokens, 'bigram_lookup': fit_bigrams}


def _all_tokens(windows):
  return np.concatenate([window.tokens_L for window in windows])


def _all_activations(windows):
  return np.concatenate([window.activations_L for window in windows])


def _all_pairs(windows):
  """Returns one number for each token and the one before it in its window."""
  tokens_T = _all_tokens(windows).astype('int64')
  sizes = [len(window.tokens_L) for window in windows]
  before_T = np.roll(tokens_T, 1)
  before_T[np.cumsum(sizes) - sizes] = _NO_TOKEN
  return before_T * _SHIFT + tokens_T


def _means(keys_T, values_T):
  keys_K, place_T = np.unique(keys_T, return_inverse=True)
  return keys_K, np.bincount(place_T, values_T) / np.bincount(place_T)


def _look_up(means, keys_T, otherwise):
  keys_K, means_K = means
  place_T = np.searchsorted(keys_K, keys_T).clip(max=len(keys_K) - 1)
  return np.where(keys_K[place_T] == keys_T, means_K[place_T], otherwise)
