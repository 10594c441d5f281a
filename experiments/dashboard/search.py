"""Which latents fire on, or promote, tokens that begin with some letters.

An inverted index in files: one for each first two letters that any token has,
so that a search reads what it needs.
"""

import collections

import numpy as np
import pyarrow as pa

KINDS = {'fires': 'tokens', 'promotes': 'promoted'}


def buckets(
  latents: pa.Table, texts: np.ndarray
) -> dict[str, dict[str, dict[str, list[int]]]]:
  """Returns {file: {token: {'fires' or 'promotes': latents}}}.

  Tokens are without the space around them and in small letters. A file's name
  is the code points of their first two letters, or of the only one.
  """
  found = collections.defaultdict(dict)
  for kind, column in KINDS.items():
    token, latent = _entries(latents[column].combine_chunks())
    order = np.argsort(token, kind='stable')
    token, latent = token[order], latent[order]
    starts = np.flatnonzero(np.diff(token, prepend=-1))
    for part in np.split(np.arange(len(token)), starts[1:]):
      if not len(part):
        continue
      text = _plain(texts[token[part[0]]])
      if text:
        lists = found[_bucket(text)].setdefault(text, _new())
        lists[kind] += latent[part].tolist()
  return dict(found)


def _new():
  return {kind: [] for kind in KINDS}


def _plain(text):
  return text.strip().lower()


def _bucket(text):
  return '_'.join(f'{ord(letter):x}' for letter in text[:2])


def _entries(lists):
  """Returns the tokens of all latents, and whose they are."""
  sizes = np.diff(lists.offsets.to_numpy())
  token = lists.flatten().field('token').to_numpy()
  return token, np.repeat(np.arange(len(sizes)), sizes)
