"""The few numbers of every latent that the index sorts and filters by."""

import base64

import numpy as np
import pyarrow as pa

from jumprelu_jax.records import schema

# Tokens of a latent that the index shows, of each kind.
_LISTED = 3


def columns(records: schema.Records, latents: pa.Table) -> dict[str, object]:
  """Returns what data/columns.js gives.

  Numbers are base64 of little-endian arrays: 16 bytes a latent, and 24 for the
  tokens. A token is 1 + its place in `texts`, or 0 where there is none.
  """
  source = records.source
  tokens = {
    'fires': _first(latents['tokens']),
    'promotes': _first(latents['promoted']),
  }
  used = np.unique(np.concatenate([t[t >= 0] for t in tokens.values()]))
  return {
    'positions': source.positions,
    'strata': source.strata,
    'edges': [float(f'{edge:.4g}') for edge in source.edges],
    'count': _packed(latents['count'].to_numpy(), '<f8'),
    'max': _packed(latents['max'].to_numpy(), '<f4'),
    'mean': _packed(latents['mean'].to_numpy(), '<f4'),
    'listed': _LISTED,
    'texts': records.texts[used].tolist(),
    **{
      name: _packed(np.where(t >= 0, np.searchsorted(used, t) + 1, 0), '<u4')
      for name, t in tokens.items()
    },
  }


def _first(lists):
  """Returns the first tokens of each latent [M, _LISTED]; -1 fills up."""
  lists = lists.combine_chunks()
  size_M = np.diff(lists.offsets.to_numpy())
  place_MK = (np.cumsum(size_M) - size_M)[:, None] + np.arange(_LISTED)
  is_there_MK = np.arange(_LISTED) < size_M[:, None]
  token = lists.flatten().field('token').to_numpy()
  padded = np.append(token, -1)
  return np.where(is_there_MK, padded[np.minimum(place_MK, len(token))], -1)


def _packed(values, dtype):
  array = np.ascontiguousarray(values, np.dtype(dtype))
  return base64.b64encode(array.tobytes()).decode('ascii')
