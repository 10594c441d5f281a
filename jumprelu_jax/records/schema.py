"""The files of a folder of records, and how they are read.

  DIR/tokens.parquet      the text of every token of the vocabulary
  DIR/latents.parquet     a row for each latent, in their order
  DIR/examples.parquet    windows of text in which a latent fires, sorted by
                          latent, stratum, and activation from large to small
  DIR/background.parquet  windows drawn without regard to any latent, with all
                          latents that fire in them
  DIR/seal.json           checksums of all these, and what records.json says
  DIR/records.json        a `Source`; written last, so a folder that holds it
                          is whole

Parquet, so that pandas, DuckDB and the like read it too. Activations are as the
SAE's own files have them; of those trained here the decoder's rows have norm 1.
Positions that hold special tokens (BOS, EOS, PAD) are never counted and never
an example's own; in a window they have activation 0.

Examples of the stratum TOP are from different sequences, so that no two show
the same text. One may be among those of the other strata as well, which are a
uniform sample of all of a latent's firings; of a latent that fires seldom most
are. Windows of the background are in a random order: the first few are a sample
too.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import os
import pathlib

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from jumprelu_jax import errors
from jumprelu_jax import json_files
from jumprelu_jax import seals
from jumprelu_jax.text import pieces

VERSION = 1
NAMES = ('tokens', 'latents', 'examples', 'background')
SOURCE = 'records.json'

#: The stratum of a latent's largest activations. Strata 1 and up are quantiles
#: of a uniform sample of its firings, from small activations to large ones.
TOP = 0

_INT, _LONG, _REAL = pa.int32(), pa.int64(), pa.float32()


def _pairs(key, value_name, value):
  return pa.list_(pa.struct([(key, _INT), (value_name, value)]))


#: Columns by the name of a file.
SCHEMAS = {
  'tokens': pa.schema(
    [
      ('token', _INT),
      ('text', pa.string()),
      # Of a token that is not whole characters; null where it is `text`.
      ('bytes', pa.binary()),
    ]
  ),
  'latents': pa.schema(
    [
      ('latent', _INT),
      ('count', _LONG),  # positions at which it fires
      ('frequency', pa.float64()),  # count over all positions of text
      ('mean', _REAL),  # of its activation where it fires; NaN if never
      ('max', _REAL),  # 0 if it never fires
      ('histogram', pa.list_(_LONG)),  # of activations; Source.edges
      # Tokens at which it fires most often, most frequent first. Counts may be
      # too small by at most Source.token_count_error times `count`.
      ('tokens', _pairs('token', 'count', _LONG)),
      # Largest and smallest effects on logits of a unit of activation.
      ('promoted', _pairs('token', 'logit', _REAL)),
      ('suppressed', _pairs('token', 'logit', _REAL)),
      # Nearest first: by the decoder's rows, and by firing at the same
      # positions (intersection over union).
      ('similar', _pairs('latent', 'cosine', _REAL)),
      ('together', _pairs('latent', 'jaccard', _REAL)),
    ]
  ),
  'examples': pa.schema(
    [
      ('latent', _INT),
      ('stratum', pa.int8()),
      ('activation', _REAL),  # at `position`
      ('sequence', _INT),  # row of the packed text
      ('position', _INT),  # in that row
      ('start', _INT),  # position of the window's first token
      ('tokens', pa.list_(_INT)),
      ('activations', pa.list_(_REAL)),  # of this latent, one a token
    ]
  ),
  'background': pa.schema(
    [
      ('window', _INT),
      ('sequence', _INT),  # row of the packed text
      ('start', _INT),  # position of the window's first token in that row
      ('offset', _INT),  # in the window
      ('token', _INT),
      ('latents', pa.list_(_INT)),  # that fire there, ascending
      ('activations', pa.list_(_REAL)),
    ]
  ),
}


@dataclasses.dataclass(frozen=True)
class Source:
  """Where records come from.

  Attributes:
    sae: what they are of: a folder or a hub id.
    model: the language model's name.
    site: where the SAE reads, in the words of `lm.sites`.
    layer: of that site.
    architecture: the SAE's, such as jumprelu; empty where its files do not say.
    l0: latents that fire at a position of this text, on average.
    text: what text they were found in.
    num_latents: M.
    positions: of text, special ones left out.
    edges: of the histogram's bins, one more than bins, geometric; what lies
      outside is counted in the first or last one.
    strata: quantiles that examples are drawn from.
    token_count_error: see `tokens` in the schema.
    seed: of the samples.
    version: of this format.
  """

  sae: str
  model: str
  site: str
  layer: int
  architecture: str
  l0: float
  text: str
  num_latents: int
  positions: int
  edges: tuple[float, ...]
  strata: int
  token_count_error: float
  seed: int
  version: int = VERSION


@dataclasses.dataclass(frozen=True)
class Records:
  """A folder of records, opened for reading.

  Attributes:
    folder: where it is.
    source: what it is of.
  """

  folder: pathlib.Path
  source: Source

  def latents(self, columns: Sequence[str] | None = None) -> pa.Table:
    """Returns latents.parquet, or some of its columns."""
    return parquet.read_table(self._path('latents'), columns=columns)

  def examples(self, latents: Sequence[int]) -> pa.Table:
    """Returns the examples of some latents, without reading all others'."""
    wanted = [('latent', 'in', [int(latent) for latent in latents])]
    return parquet.read_table(self._path('examples'), filters=wanted)

  def background(self) -> pa.Table:
    """Returns background.parquet."""
    return parquet.read_table(self._path('background'))

  @functools.cached_property
  def pieces(self) -> pieces.Pieces:
    """The text of each token; called with a window's tokens, its pieces."""
    table = parquet.read_table(self._path('tokens'))
    texts_V = table['text'].to_numpy(zero_copy_only=False)
    cut = {}
    if 'bytes' in table.column_names:  # not in those of earlier versions
      parts = table['bytes'].to_pylist()
      cut = {i: part for i, part in enumerate(parts) if part is not None}
    return pieces.Pieces(texts_V, cut)

  @property
  def texts(self) -> np.ndarray:
    """The text of each token alone [V], strings."""
    return self.pieces.texts_V

  def _path(self, name):
    return self.folder / f'{name}.parquet'


def read(folder: str | os.PathLike) -> Records:
  """Opens a folder of records.

  Raises:
    errors.InputError: it is not whole, damaged, or of another version.
  """
  folder = pathlib.Path(folder)
  path = folder / SOURCE
  if not path.is_file():
    raise errors.InputError(
      f'{folder} holds no {SOURCE}; give a folder that experiments.records has '
      'finished.'
    )
  try:
    found = json_files.parse_object(path.read_bytes())
    version = found['version']
    if version == VERSION:
      seals.check(
        folder,
        'Make the records again with experiments.records, in another folder.',
        about=found,
      )
      found['edges'] = tuple(found['edges'])
      return Records(folder, Source(**found))
  except errors.InputError:
    raise
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise errors.InputError(
      f'{path} is damaged: {error}. Make the records again with '
      'experiments.records, in another folder.'
    ) from error
  raise errors.InputError(
    f'{path} is of version {version}; expected {VERSION}. Make the records '
    'again with experiments.records.'
  )
