"""SAEs that learned nothing, as a baseline for what looks interpretable.

Directions are drawn by chance, thresholds set on text so that every latent
fires equally often. A latent of such an SAE still fires on something: some
tokens' activations are near any direction. What a trained SAE's latents score
above these is what training did.
"""

from __future__ import annotations

import jax
from jax import numpy as jnp
import numpy as np

from jumprelu_jax import errors
from jumprelu_jax import evaluation
from jumprelu_jax import products
from jumprelu_jax.lm import transformer
from jumprelu_jax.sae import maps
from jumprelu_jax.sae import released

_LATENTS_AT_A_TIME = 256


def draw(
  key: jax.Array, x_ND: np.ndarray, num_latents: int, l0: float
) -> released.SAE:
  """Returns a random SAE that has an L0 on some activations.

  The encoder is the decoder's transpose, as at the beginning of training; what
  it reads is centred on the activations' mean.

  Args:
    key: consumed.
    x_ND: raw activations of text.
    num_latents: M.
    l0: wanted; every latent fires on round(N l0 / M) of the rows.

  Raises:
    errors.InputError: so many latents cannot be told apart on so few rows.
  """
  N, D = x_ND.shape
  fires = round(N * l0 / num_latents) if 0 < l0 < num_latents else 0
  if not 0 < fires < N:
    raise errors.InputError(
      f'an L0 of {l0:g} of {num_latents:,} latents is {fires} of {N:,} '
      'positions for each; expected at least one, and not all. Use more '
      'positions.'
    )
  W_dec_MD = maps.unit_rows(jax.random.normal(key, (num_latents, D)))
  mean_D = x_ND.mean(0, dtype='float64').astype('float32')
  b_enc_M = -products.matmul(W_dec_MD, mean_D)
  threshold_M = _thresholds(x_ND, W_dec_MD.T, b_enc_M, fires)
  if not (threshold_M > 0).all():
    raise errors.InputError(
      f'an L0 of {l0:g} of {num_latents:,} latents needs thresholds below 0; '
      'ask for less than half of them.'
    )
  return released.SAE(
    W_enc=W_dec_MD.T,
    b_enc=b_enc_M,
    W_dec=W_dec_MD,
    b_dec=jnp.asarray(mean_D),
    threshold=jnp.asarray(threshold_M),
  )


def activations(setting: evaluation.Setting, positions: int) -> np.ndarray:
  """Returns raw activations [N, D] of text at a site, N at most `positions`.

  They are the text's first, special positions left out.
  """
  where = setting.source or setting.where
  tap = jax.jit(
    lambda model, tokens_BL: transformer.tap(model, tokens_BL, (where,))[0]
  )
  rows, found = [], 0
  for batch in setting.batches('activations'):
    x_BLD = np.asarray(tap(setting.model, batch.tokens_BL), 'float32')
    rows.append(x_BLD[batch.is_text_BL])
    found += len(rows[-1])
    if found >= positions:
      break
  return np.concatenate(rows)[:positions]


def _thresholds(x_ND, W_DM, b_M, fires):
  """Returns thresholds [M] that `fires` rows of each latent exceed.

  Each lies halfway between two pre-activations: another program, which rounds
  otherwise, must not move a row across it.
  """
  place, found = len(x_ND) - fires - 1, []
  for start in range(0, W_DM.shape[1], _LATENTS_AT_A_TIME):
    some = slice(start, start + _LATENTS_AT_A_TIME)
    pre_NM = np.asarray(products.matmul(x_ND, W_DM[:, some]) + b_M[None, some])
    sorted_NM = np.partition(pre_NM, (place, place + 1), axis=0)
    found.append(sorted_NM[place : place + 2].mean(0))
  return np.concatenate(found)
