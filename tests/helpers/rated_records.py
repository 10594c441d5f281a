"""Small folders of latent records, as experiments.records leaves them."""

import itertools

import numpy as np
import pyarrow as pa

from helpers import records_files
from jumprelu_jax.ratings import study as study_lib
from jumprelu_jax.records import schema

WORDS = [
    'the', 'of', 'and', 'to', 'in', 'a', 'is', 'that', 'for', 'it', 'as', 'was',
    'with', 'river', 'stone', 'winter', 'market', 'letter', 'garden', 'silver',
]  # fmt: skip
NASTY = ['<script>alert("x")</script>', '&amp;', '"\'', '\n', '']
RATERS = ('ann', 'Bo B.')
# Above the numbers of ports that a system gives.
LAYER, FIRST_LATENT = 61_357, 71_001
TEXTS = [f' {word}' for word in WORDS] + NASTY


def write(
  folder,
  alive,
  *,
  num_latents=40,
  scale=1.0,
  strata=4,
  per_stratum=6,
  before=7,
  after=5,
  seed=0,
  **source,
):
  """Writes a folder; latents of `alive` fire, the others never do.

  Which windows a latent has depends on its place in `alive` and the seed alone:
  two SAEs with as many, of the same seed, differ in nothing that may be seen.
  """
  tables = {
    'tokens': [{'token': i, 'text': text} for i, text in enumerate(TEXTS)],
    'examples': [
      row
      for place, latent in enumerate(alive)
      for row in _examples(
        latent, scale, strata, per_stratum, before, after, (seed, place)
      )
    ],
    'background': [],
    'latents': _latents(alive, num_latents, scale),
  }
  values = {
    'sae': str(folder), 'model': 'planted', 'site': 'resid_post', 'layer': 3,
    'architecture': 'jumprelu', 'l0': 20.0, 'text': 'words',
    'num_latents': num_latents, 'positions': 10_000, 'edges': (0.1, 1.0),
    'strata': strata, 'token_count_error': 0.0, 'seed': seed,
  } | source  # fmt: skip
  records_files.write(folder, tables, schema.Source(**values))
  return folder


def write_six(folder):
  """Records of six SAEs, whose every property is a string of its own."""
  kinds = itertools.product(('gated', 'jumprelu', 'topk'), (37.41, 151.73))
  return [
    write(
      folder / f'folder_of_{architecture}_{k}',
      range(FIRST_LATENT + 100 * k, FIRST_LATENT + 100 * k + 5),
      num_latents=FIRST_LATENT + 1000,
      scale=7351.75 + 1000 * k,
      architecture=architecture,
      site='resid_mid',
      layer=LAYER,
      l0=l0 + k / 100,
      seed=k,
    )
    for k, (architecture, l0) in enumerate(kinds)
  ]


def _latents(alive, num_latents, scale):
  """The table of all latents, by columns: it may be long."""
  fires_M = np.isin(np.arange(num_latents), list(alive))
  columns = {
    'latent': np.arange(num_latents),
    'count': np.where(fires_M, 1000, 0),
    'frequency': np.where(fires_M, 0.1, 0.0),
    'mean': np.where(fires_M, 0.4 * scale, np.nan),
    'max': np.where(fires_M, scale, 0.0),
  }
  fields = schema.SCHEMAS['latents']
  arrays = [
    pa.array(columns.get(field.name, [[]] * num_latents), field.type)
    for field in fields
  ]
  return pa.Table.from_arrays(arrays, schema=fields)


def _examples(latent, scale, strata, per_stratum, before, after, seed):
  """Yields windows: the largest from 1 down, quantiles in between."""
  rng = np.random.default_rng(seed)
  for stratum in range(strata + 1):
    low, high = (stratum - 1) / strata, stratum / strata
    shares = np.sort(rng.uniform(low, high, per_stratum))[::-1]
    if stratum == schema.TOP:
      shares = 1 - np.arange(per_stratum) / 100
    for k, share in enumerate(shares):
      position = 100 * (stratum * per_stratum + k) + before
      activations = np.where(rng.random(before + 1 + after) < 0.2, 0.5, 0)
      activations *= share
      activations[before] = share
      yield {
        'latent': latent,
        'stratum': stratum,
        'activation': scale * share,
        'sequence': 7,
        'position': position,
        'start': position - before,
        'tokens': rng.integers(0, len(TEXTS), before + 1 + after).tolist(),
        'activations': (scale * activations).tolist(),
      }


def prepare_small(folder, records):
  """A study of few items, some of them rated by both of the raters."""
  settings = {
    'records': study_lib.same_folders(records),
    'raters': RATERS,
    'overlap': 0.34,
    'per_stratum': 3,
  }
  return study_lib.prepare(folder, settings)
