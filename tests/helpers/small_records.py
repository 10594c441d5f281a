"""Folders of records that are written by hand, for those who read them."""

import numpy as np

from helpers import records_files
from jumprelu_jax.records import schema

#: Texts that a page must show as they are, and that would do something else if
#: they were taken for markup, for a script, or for the end of one.
HOSTILE = (
  '<script>window.hacked = 1</script>',
  '</script><script>window.hacked = 2</script>',
  '<img src=x onerror="window.hacked = 3">',
  '"; window.hacked = 4; //',
  "' onmouseover='window.hacked = 5",
  '<!-- <script>',
  '&lt;b&gt; &amp; \\u003c',
  '{{ 7 * 7 }} ${7 * 7} `x`',
  '\u2028\u2029\u202e\N{GRINNING FACE}',
)
LENGTH, WIDTH, STRATA = 128, 8, 5
EDGES = tuple(np.exp2(np.arange(9) / 2).tolist())


def texts():
  """A vocabulary: words in the order of their names, then hostile ones."""
  words = [f' {a}{b}{c}' for a in 'abcdef' for b in 'xyz' for c in 'klmn']
  return ['<pad>', '\n', *words, *HOSTILE]


def write(folder, num_latents, *, seed=0, examples=True):
  """Writes a folder of records; returns what the latents' table says.

  Latent 0 never fires; latent m fires on token 2 + m % 72 first, and promotes
  the one after.
  """
  rng = np.random.default_rng(seed)
  vocabulary = texts()
  rows = [_latent(m, num_latents, rng) for m in range(num_latents)]
  windows = range(num_latents if examples else 0)
  shown = [example for m in windows for example in _examples(m, rng)]
  tables = {
    'tokens': [{'token': i, 'text': text} for i, text in enumerate(vocabulary)],
    'latents': rows,
    'examples': shown,
    'background': [],
  }
  records_files.write(folder, tables, source(num_latents))
  return rows


def source(num_latents):
  """Where they come from; its words are hostile too."""
  return schema.Source(
    sae='runs/<b>sae',
    model='a "model"',
    site='resid_post',
    layer=2,
    architecture='jumprelu',
    l0=31.5,
    text='some/folder/text & more.jsonl',
    num_latents=num_latents,
    positions=1_000_000,
    edges=EDGES,
    strata=STRATA,
    token_count_error=1 / 33,
    seed=0,
  )


def _latent(m, num_latents, rng):
  count = 0 if m == 0 else int(10 ** rng.uniform(1, 5))
  token = 2 + m % 72
  largest = float(np.float32(rng.uniform(4, 16))) if m else 0.0

  def others():
    return [int(o) for o in rng.permutation(num_latents)[:3] if o != m]

  return {
    'latent': m,
    'count': count,
    'frequency': count / 1_000_000,
    'mean': largest / 3 if m else float('nan'),
    'max': largest,
    'histogram': [count // 2, 0, 0, count - count // 2, 0, 0, 0, 0],
    'tokens': [
      {'token': t, 'count': count // (i + 2)}
      for i, t in enumerate([token, 74 + m % len(HOSTILE), 1])
      if m
    ],
    'promoted': [{'token': 2 + (m + 1) % 72, 'logit': 1.5}],
    'suppressed': [{'token': 2 + (m + 2) % 72, 'logit': -0.5}],
    'similar': [{'latent': o, 'cosine': 0.5} for o in others()],
    'together': [{'latent': o, 'jaccard': 0.25} for o in others()],
  }


def _examples(m, rng):
  """Three windows of each stratum, activations falling; none of latent 0."""
  rows = []
  for stratum in range(STRATA + 1 if m else 0):
    for rank in range(3):
      position = 40 + 10 * rank
      activations = np.zeros(WIDTH, np.float32)
      activations[4] = 4.0 / (1 + stratum) / (1 + rank)
      activations[6] = activations[4] / 2
      tokens = [2 + (m + i) % 72 for i in range(WIDTH)]
      tokens[5] = 74 + (m + stratum + rank) % len(HOSTILE)
      rows.append(
        {
          'latent': m,
          'stratum': stratum,
          'activation': float(activations[4]),
          'sequence': int(rng.integers(1000)),
          'position': position,
          'start': position - 4,
          'tokens': tokens,
          'activations': activations.tolist(),
        }
      )
  return rows
