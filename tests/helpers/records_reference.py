"""Latent records in plain NumPy, from all activations at once.

Nothing here is shared with the library but the names of columns: each latent is
a loop over all positions, and the hash is written with Python's own integers.
"""

import collections
import math

import numpy as np

BITS = 2**64 - 1
UNIFORM, WINDOWS = 1, 2
LISTED = 10


def scramble(z):
  z = (z + 0x9E3779B97F4A7C15) & BITS
  z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & BITS
  z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & BITS
  return z ^ (z >> 31)


def hash_of(seed, *keys):
  z = scramble((seed + 0x9E3779B97F4A7C15) & BITS)
  for key in keys:
    z = scramble(z ^ int(key))
  return z


def latents(f_NLM, tokens_NL, is_text_NL, edges, settings):
  """Rows of latents.parquet without logits and neighbours."""
  rows = []
  for latent in range(f_NLM.shape[-1]):
    f_NL = f_NLM[..., latent] * is_text_NL
    fired = f_NL[f_NL > 0]
    found = collections.Counter(tokens_NL[f_NL > 0].tolist())
    tokens = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))
    counts, _ = np.histogram(fired, edges)
    rows.append(
      {
        'latent': latent,
        'count': len(fired),
        'frequency': len(fired) / is_text_NL.sum(),
        'mean': fired.astype(np.float64).mean() if len(fired) else math.nan,
        'max': fired.max(initial=0),
        'histogram': counts.tolist(),
        'tokens': tokens[:LISTED],
      }
    )
  return rows


def examples(f_NLM, tokens_NL, is_text_NL, settings):
  """Rows of examples.parquet."""
  rows = []
  for latent in range(f_NLM.shape[-1]):
    f_NL = f_NLM[..., latent] * is_text_NL
    L = f_NL.shape[1]
    firings = [(f_NL[n, i], n, i) for n, i in np.argwhere(f_NL > 0).tolist()]
    best = {}
    for value, n, i in firings:
      if n not in best or value > best[n][0]:
        best[n] = value, n, i
    top = sorted(best.values(), key=lambda one: (-one[0], one[1], one[2]))
    rows += [(latent, 0, one) for one in top[: settings.top]]
    drawn = sorted(
      firings,
      key=lambda one: hash_of(
        settings.seed, UNIFORM, latent, one[1] * L + one[2]
      ),
    )[: settings.sampled]
    drawn.sort()
    for stratum in range(1, settings.strata + 1):
      mine = [
        one
        for rank, one in enumerate(drawn)
        if 1 + rank * settings.strata // len(drawn) == stratum
      ]
      rows += [(latent, stratum, one) for one in reversed(mine)]
  return [
    _example(row, f_NLM * is_text_NL[..., None], tokens_NL, settings)
    for row in rows
  ]


def _example(row, f_NLM, tokens_NL, settings):
  latent, stratum, (value, n, i) = row
  width, length = settings.width, tokens_NL.shape[1]
  start = min(max(i - width // 2, 0), length - width)
  return {
    'latent': latent,
    'stratum': stratum,
    'activation': value,
    'sequence': n,
    'position': i,
    'start': start,
    'tokens': tokens_NL[n, start : start + width].tolist(),
    'activations': f_NLM[n, start : start + width, latent].tolist(),
  }


def windows(is_text_NL, width, size, seed):
  """Starts (n, i) of the windows drawn, by their hashes."""
  N, L = is_text_NL.shape
  starts = [
    (n, i)
    for n in range(N)
    for i in range(L % width, L, width)
    if is_text_NL[n, i : i + width].mean() > 0.5
  ]
  starts.sort(key=lambda s: hash_of(seed, WINDOWS + width, s[0] * L + s[1]))
  return starts[:size]


def background(f_NLM, tokens_NL, is_text_NL, settings):
  """Rows of background.parquet."""
  starts = windows(
    is_text_NL, settings.width, settings.background, settings.seed
  )
  rows = []
  for window, (n, i) in enumerate(starts):
    for offset in range(settings.width):
      f_M = f_NLM[n, i + offset] * is_text_NL[n, i + offset]
      rows.append(
        {
          'window': window,
          'sequence': n,
          'start': i,
          'offset': offset,
          'token': tokens_NL[n, i + offset],
          'latents': np.flatnonzero(f_M).tolist(),
          'activations': f_M[f_M > 0].tolist(),
        }
      )
  return rows


def together(f_NLM, is_text_NL, settings):
  """Lists of (latent, Jaccard) of positions in the sample."""
  places = windows(is_text_NL, 1, settings.positions, settings.seed)
  fires_PM = np.stack([f_NLM[n, i] > 0 for n, i in places])
  found = []
  for latent, mine_P in enumerate(fires_PM.T):
    pairs = []
    for other, theirs_P in enumerate(fires_PM.T):
      both = (mine_P & theirs_P).sum()
      if other != latent and both >= 2:
        pairs.append((other, both / (mine_P | theirs_P).sum()))
    found.append(sorted(pairs, key=lambda p: (-p[1], p[0]))[:LISTED])
  return found


def similar(W_dec_MD):
  """Lists of (latent, cosine)."""
  W = np.float64(W_dec_MD)
  norm = np.linalg.norm(W, axis=1)
  cosine = W @ W.T / norm[:, None] / norm[None]
  found = []
  for latent, row in enumerate(cosine):
    pairs = [(o, c) for o, c in enumerate(row) if o != latent]
    found.append(sorted(pairs, key=lambda p: -p[1])[:LISTED])
  return found


def logits(W_dec_MD, gain_D, head_VD):
  """Lists of (token, logit), largest first and smallest first."""
  effect_MV = (np.float64(W_dec_MD) * gain_D) @ np.float64(head_VD).T
  raised, lowered = [], []
  for effect_V in effect_MV:
    order = np.argsort(effect_V)
    raised.append([(t, effect_V[t]) for t in order[::-1][:LISTED]])
    lowered.append([(t, effect_V[t]) for t in order[:LISTED]])
  return raised, lowered
