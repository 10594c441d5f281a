"""All that a latent's page shows, for some latents in one file."""

from collections.abc import Iterator
import itertools

import numpy as np
import pyarrow as pa

from jumprelu_jax.records import schema

#: Latents in a file.
CHUNK = 16
# Latents whose examples are read together: as many as records keep together.
_READ = 256
_LISTS = ('tokens', 'promoted', 'suppressed', 'similar', 'together')


def chunks(
  records: schema.Records, latents: pa.Table, examples: int
) -> Iterator[tuple[int, dict[str, object]]]:
  """Yields (number, what data/latents/NUMBER.js gives).

  `latents` is a list of latents, `texts` the texts of the tokens in them; a
  token is a place in it.

  Args:
    records: to be shown.
    latents: their table.
    examples: windows of a latent, of each stratum, at most.
  """
  for start in range(0, len(latents), _READ):
    rows = latents.slice(start, _READ).to_pylist()
    of_latent = {row['latent']: [] for row in rows}
    for example in _examples(records.examples(list(of_latent))):
      of_latent[example['latent']].append(example)
    for first in range(0, len(rows), CHUNK):
      part = rows[first : first + CHUNK]
      shown = [_chosen(of_latent[row['latent']], examples) for row in part]
      yield (start + first) // CHUNK, _chunk(part, shown, records.pieces)


def _chunk(rows, examples, pieces):
  """Returns the content of a file."""
  places = {}

  def place(text):
    return places.setdefault(text, len(places))

  def place_alone(token):
    return place(pieces.texts_V[token])

  def place_all(tokens):
    return list(map(place, pieces(tokens)))

  found = [
    {
      'histogram': row['histogram'],
      **{name: _pairs(row[name], place_alone) for name in _LISTS},
      'examples': [_example(one, place_all) for one in mine],
    }
    for row, mine in zip(rows, examples, strict=True)
  ]
  return {'latents': found, 'texts': list(places)}


def _pairs(pairs, place):
  return [
    [
      place(pair['token']) if 'token' in pair else pair['latent'],
      _rounded(list(pair.values())[1]),
    ]
    for pair in pairs
  ]


def _example(one, place_all):
  """Returns a window; activations are [offset, value, offset, value, …]."""
  values = one['activations']
  fires = np.flatnonzero(values)
  on = [(int(i), _rounded(values[i])) for i in fires]
  return {
    'stratum': one['stratum'],
    'sequence': one['sequence'],
    'position': one['position'],
    'at': one['position'] - one['start'],
    'tokens': place_all(one['tokens'].tolist()),
    'on': list(itertools.chain.from_iterable(on)),
  }


def _chosen(examples, most):
  """Returns at most so many of each stratum, spread over those there are.

  Of the largest activations the first; of a quantile, from its largest to its
  smallest.
  """
  chosen = []
  by_stratum = itertools.groupby(examples, lambda one: one['stratum'])
  for stratum, mine in by_stratum:
    mine = list(mine)
    if stratum != schema.TOP and len(mine) > most:
      spread = np.linspace(0, len(mine) - 1, most).round().astype(int)
      mine = [mine[i] for i in spread]
    chosen += mine[:most]
  return chosen


def _examples(table):
  """Yields rows of examples; lists stay arrays, which are many."""
  names = ('latent', 'stratum', 'sequence', 'position', 'start')
  plain = zip(*(table[name].to_pylist() for name in names), strict=True)
  lists = [_arrays(table[name]) for name in ('tokens', 'activations')]
  for values, tokens, activations in zip(plain, *lists, strict=True):
    yield dict(zip(names, values, strict=True)) | {
      'tokens': tokens,
      'activations': activations,
    }


def _arrays(column):
  """Returns the lists of a column as arrays."""
  lists = column.combine_chunks()
  sizes = np.diff(lists.offsets.to_numpy())
  if not len(sizes):
    return []
  return np.split(lists.flatten().to_numpy(), np.cumsum(sizes)[:-1])


def _rounded(value):
  return value if isinstance(value, int) else float(f'{value:.4g}')
