"""A gathered state → columns of the files, in the order of the schema."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import pyarrow as pa

from jumprelu_jax import errors
from jumprelu_jax.lm import sites
from jumprelu_jax.lm import transformer
from jumprelu_jax.records import counts
from jumprelu_jax.records import effects
from jumprelu_jax.records import firings
from jumprelu_jax.records import hashing
from jumprelu_jax.records import neighbours
from jumprelu_jax.records import samples
from jumprelu_jax.records import schema
from jumprelu_jax.records import state as state_lib

# Of each list: tokens, promoted, suppressed, similar, together.
_LISTED = 10
# Of a column's lists together: their bounds are Parquet's 32-bit integers.
_MOST_ELEMENTS = 2**31 - 1


def latents(
  state: state_lib.State,
  model: transformer.Transformer,
  W_dec_ME: jax.Array,
  target: sites.Site,
) -> list[Any]:
  """Returns latents.parquet's.

  Args:
    state: of the whole text.
    model: with the layers up to the site.
    W_dec_ME: decoder.
    target: what the SAE predicts.
  """
  totals, M = state.totals, len(W_dec_ME)
  first, stop = used_bins(totals)
  token_MK = state.tokens.token_MS[:, :_LISTED]
  count_MK = state.tokens.count_MS[:, :_LISTED]
  sampled = state.positions.arrays()
  return [
    np.arange(M, dtype=np.int32),
    totals.count_M,
    totals.count_M / max(totals.positions[0], 1),
    _means(totals),
    totals.max_M,
    _lists(totals.histogram_MH[:, first:stop]),
    _pairs('tokens', token_MK, count_MK, count_MK > 0),
    *_effects(model, W_dec_ME, target),
    _of_blocks('similar', neighbours.by_decoder(W_dec_ME, _LISTED)),
    _of_blocks(
      'together',
      neighbours.by_firing(sampled['place_E'], sampled['latent_E'], M, _LISTED),
    ),
  ]


def examples(
  state: state_lib.State, latent_b: np.ndarray, tokens_NL: np.ndarray
) -> list[Any]:
  """Returns examples.parquet's, of a few latents in their order.

  Args:
    state: of the whole text, settled.
    latent_b: which.
    tokens_NL: the text.
  """
  top = _sampled(state.top, latent_b, tokens_NL)
  uniform = _sampled(state.uniform, latent_b, tokens_NL)
  top['stratum'] = np.full(len(top['latent']), schema.TOP, np.int8)
  uniform['stratum'] = _strata(uniform, state.settings.strata)
  both = {name: np.concatenate([top[name], uniform[name]]) for name in uniform}
  order = np.lexsort(
    (both['key'], -both['activation'], both['stratum'], both['latent'])
  )
  both = {name: column[order] for name, column in both.items()}
  names = schema.SCHEMAS['examples'].names
  return [
    _lists(both[name]) if both[name].ndim == 2 else both[name] for name in names
  ]


def background(state: state_lib.State, tokens_NL: np.ndarray) -> list[Any]:
  """Returns background.parquet's; windows are in a random order."""
  windows, L = state.background, tokens_NL.shape[1]
  found = windows.arrays()
  place_GW = found['start_G'][:, None] + np.arange(windows.width)
  place_R = place_GW.reshape(-1)
  # Firings are in the order of the text, so those of a place lie together.
  starts_R, stops_R = (
    np.searchsorted(found['place_E'], place_R, side=side)
    for side in ('left', 'right')
  )
  sizes_R = stops_R - starts_R
  bounds = _bounds(sizes_R)
  within = np.arange(bounds[-1]) - np.repeat(bounds[:-1], sizes_R)
  chosen = np.repeat(starts_R, sizes_R) + within
  window_R, offset_R = np.divmod(np.arange(len(place_R)), windows.width)
  sequence_R, position_R = np.divmod(place_R, L)
  return [
    window_R.astype(np.int32),
    sequence_R.astype(np.int32),
    (position_R - offset_R).astype(np.int32),
    offset_R.astype(np.int32),
    tokens_NL[sequence_R, position_R],
    pa.ListArray.from_arrays(bounds, found['latent_E'][chosen]),
    pa.ListArray.from_arrays(bounds, found['value_E'][chosen]),
  ]


def used_bins(totals: counts.Totals) -> tuple[int, int]:
  """Returns (first, stop) of the histograms' bins that any latent uses."""
  used = np.flatnonzero(totals.histogram_MH.sum(axis=0))
  return (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)


def _means(totals):
  count_M = np.maximum(totals.count_M, 1)
  mean_M = np.where(totals.count_M, totals.sum_M / count_M, np.nan)
  return mean_M.astype(np.float32)


def _sampled(kept: samples.Samples, latent_b, tokens_NL):
  """Returns columns of the firings that are kept of some latents."""
  key_bR = kept.key_MR[latent_b]
  row, slot = np.nonzero(key_bR != hashing.NOTHING)
  latent = latent_b[row]
  sequence = kept.sequence_MR[latent, slot]
  position = kept.position_MR[latent, slot]
  activations = kept.window_MRW[latent, slot]
  width = activations.shape[1]
  start = firings.window_start(position, width, tokens_NL.shape[1])
  place = start[:, None] + np.arange(width)
  return {
    'latent': latent.astype(np.int32),
    'key': key_bR[row, slot],
    'activation': activations[np.arange(len(row)), position - start],
    'sequence': sequence,
    'position': position,
    'start': start.astype(np.int32),
    'tokens': tokens_NL[sequence[:, None], place],
    'activations': activations,
  }


def _strata(uniform, strata):
  """Returns each one's quantile in its latent, from 1 for the smallest."""
  latent = uniform['latent']
  order = np.lexsort((uniform['key'], uniform['activation'], latent))
  starts = np.searchsorted(latent, latent, side='left')
  sizes = np.searchsorted(latent, latent, side='right') - starts
  rank = np.arange(len(latent)) - starts
  stratum = np.empty(len(latent), np.int8)
  stratum[order] = 1 + rank * strata // np.maximum(sizes, 1)
  return stratum


def _effects(model, W_dec_ME, target):
  """Returns the columns `promoted` and `suppressed`."""
  direction_MD = effects.directions(model, target, W_dec_ME)
  names = ('promoted', 'suppressed')
  if direction_MD is None:
    none_M0 = np.empty((len(W_dec_ME), 0))
    return [_pairs(name, none_M0, none_M0, none_M0 > 0) for name in names]
  found = zip(*effects.extremes(model, direction_MD, _LISTED), strict=True)
  raised, most, lowered, least = map(np.concatenate, found)
  return [
    _pairs('promoted', raised, most, most == most),
    _pairs('suppressed', lowered, least, least == least),
  ]


def _of_blocks(name, blocks: Iterable[tuple[np.ndarray, np.ndarray]]):
  """Returns a column of latents and nearness from blocks of them.

  Firing together, 0 stands for no latent; cosines are all there.
  """
  near_MK, value_MK = map(np.concatenate, zip(*blocks, strict=True))
  is_there = value_MK > 0 if name == 'together' else value_MK == value_MK
  return _pairs(name, near_MK, value_MK, is_there)


def _pairs(name, key_MK, value_MK, is_there_MK):
  """Returns a column of lists of pairs."""
  kind = schema.SCHEMAS['latents'].field(name).type
  fields = list(kind.value_type)
  arrays = [
    pa.array(a[is_there_MK], field.type)
    for a, field in zip((key_MK, value_MK), fields, strict=True)
  ]
  pairs = pa.StructArray.from_arrays(arrays, fields=fields)
  bounds = _bounds(is_there_MK.sum(axis=1))
  return pa.ListArray.from_arrays(bounds, pairs, type=kind)


def _lists(rows_NK):
  """Returns a column of lists of one length."""
  bounds = _bounds(np.full(len(rows_NK), rows_NK.shape[1]))
  return pa.ListArray.from_arrays(bounds, rows_NK.reshape(-1))


def _bounds(sizes):
  """Returns where lists of some sizes begin and end."""
  bounds = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
  if bounds[-1] > _MOST_ELEMENTS:
    raise errors.InputError(
      f'a column of lists has {bounds[-1]:,} elements, expected at most '
      f'{_MOST_ELEMENTS:,}; ask for fewer windows, or narrower ones.'
    )
  return bounds.astype(np.int32)
