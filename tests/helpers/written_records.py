"""Small folders of latent records, written by hand.

A latent is given as its activation at every token of a text; windows are cut
around where it fires, as a pass over the text would.
"""

import dataclasses

import numpy as np

from helpers import records_files
from jumprelu_jax.records import schema

SOURCE = schema.Source(
  sae='sae',
  model='tiny',
  site='resid_post',
  layer=1,
  architecture='jumprelu',
  l0=2.0,
  text='text',
  num_latents=0,
  positions=0,
  edges=(0.1, 1.0, 10.0),
  strata=2,
  token_count_error=0.0,
  seed=0,
)


def write(
  folder,
  tokens_NL,
  activations_MNL,
  *,
  texts=None,
  window=8,
  top=8,
  per_stratum=6,
  strata=2,
  background=40,
  seed=0,
  **source,
):
  """Writes a whole folder of records and opens it.

  Args:
    folder: a new one.
    tokens_NL: the text, packed.
    activations_MNL: of every latent at every token; 0 where it is silent.
    texts: of every token, bytes where it is not whole characters; by default
      ' t0', ' t1', …
    window: tokens in a window, around the position that it is an example of.
    top: examples of the largest activations.
    per_stratum: examples of each quantile.
    strata: quantiles.
    background: windows of the background.
    seed: of the samples.
    source: fields of `schema.Source`.
  """
  tokens_NL = np.asarray(tokens_NL)
  activations_MNL = np.asarray(activations_MNL, 'float32')
  rng = np.random.default_rng(seed)
  if texts is None:
    texts = [f' t{i}' for i in range(tokens_NL.max() + 1)]
  rows = {
    'tokens': [_token(i, text) for i, text in enumerate(texts)],
    'latents': [_latent(i, f_NL) for i, f_NL in enumerate(activations_MNL)],
    'examples': [
      row
      for i, f_NL in enumerate(activations_MNL)
      for row in _examples(
        i, f_NL, tokens_NL, window, top, per_stratum, strata, rng
      )
    ],
    'background': list(
      _background(tokens_NL, activations_MNL, window, background, rng)
    ),
  }
  known = {
    'num_latents': len(activations_MNL),
    'positions': tokens_NL.size,
    'l0': float((activations_MNL > 0).sum() / tokens_NL.size),
    'strata': strata,
    'seed': seed,
  }
  about = dataclasses.replace(SOURCE, **known | source)
  records_files.write(folder, rows, about)
  return schema.read(folder)


def _token(token, text):
  if isinstance(text, str):
    return {'token': token, 'text': text}
  shown = ''.join(f'⟨{b:02X}⟩' if b > 127 else chr(b) for b in text)
  return {'token': token, 'text': shown, 'bytes': text}


def _latent(latent, f_NL):
  fired = f_NL[f_NL > 0]
  return {
    'latent': latent,
    'count': fired.size,
    'frequency': fired.size / f_NL.size,
    'mean': float(fired.mean()) if fired.size else float('nan'),
    'max': float(f_NL.max()),
    'histogram': [int(fired.size), 0],
    'tokens': [],
    'promoted': [],
    'suppressed': [],
    'similar': [],
    'together': [],
  }


def _examples(latent, f_NL, tokens_NL, window, top, per_stratum, strata, rng):
  n_F, l_F = np.nonzero(f_NL)
  order = np.argsort(-f_NL[n_F, l_F], kind='stable')
  picked = [(schema.TOP, i) for i in order[:top]]
  for stratum, part in enumerate(np.array_split(order[::-1], strata), start=1):
    drawn = rng.permutation(part)[:per_stratum]
    drawn = sorted(drawn, key=lambda i: -f_NL[n_F[i], l_F[i]])
    picked += [(stratum, i) for i in drawn]
  for stratum, i in picked:
    n, position = int(n_F[i]), int(l_F[i])
    length = tokens_NL.shape[1]
    start = max(0, min(position - window // 2, length - window))
    cut = slice(start, start + window)
    yield {
      'latent': latent,
      'stratum': stratum,
      'activation': float(f_NL[n, position]),
      'sequence': n,
      'position': position,
      'start': start,
      'tokens': tokens_NL[n, cut].tolist(),
      'activations': f_NL[n, cut].tolist(),
    }


def _background(tokens_NL, activations_MNL, window, count, rng):
  N, L = tokens_NL.shape
  places = [(n, s) for n in range(N) for s in range(0, L - window + 1, window)]
  picked = rng.permutation(len(places))[:count]
  for number, (n, start) in enumerate(places[i] for i in picked):
    for offset in range(window):
      f_M = activations_MNL[:, n, start + offset]
      latents = np.flatnonzero(f_M)
      yield {
        'window': number,
        'sequence': int(n),
        'start': start,
        'offset': offset,
        'token': int(tokens_NL[n, start + offset]),
        'latents': latents.tolist(),
        'activations': f_M[latents].tolist(),
      }
