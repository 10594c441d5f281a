"""A store of activations: shards, what is kept of each, and a manifest.

A shard has rows (see `formats`), the origin of each row, and a sidecar with
checksums and sums (see `sidecars`), written last: it makes a shard exist.
`manifest.json` says what the store is of; the rest of it is merged from the
sidecars, for people and other programs. How rows are made is `harvest`'s part.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os

import numpy as np

from jumprelu_jax import errors
from jumprelu_jax import identity
from jumprelu_jax import json_files
from jumprelu_jax import shapes
from jumprelu_jax.activations import formats
from jumprelu_jax.activations import places
from jumprelu_jax.activations import sidecars

_MANIFEST = 'manifest.json'
_ORIGIN = '.origin.npy'
_VERSION = 1
_ROWS_AT_A_TIME = 64 * formats.BLOCK_ROWS


@dataclasses.dataclass(frozen=True)
class Description:
  """What a store is of; two stores of one description hold the same rows.

  Attributes:
    model: path or hub id of the language model.
    revision: of the model.
    model_dtype: that the model computes in.
    tokenizer: digest of the tokenizer.
    site: name of the place in the model.
    layer: number of the layer.
    d_model: D, size of a row.
    dtype: of the rows, 'float32' or 'bfloat16'.
    format: of the shards, a key of `formats.FORMATS`.
    text: where the text is from.
    packing: how documents fill sequences.
    context_length: tokens of a sequence.
    num_sequences: sequences in all.
    bos_id: starts sequences.
    special_ids: tokens whose rows are dropped.
    seed: of the order of sequences and rows.
    sequences_per_bucket: sequences of a shard.
    max_norm_multiple: rows of a larger multiple of the median norm are dropped.
    num_shards: shards of a complete store.
  """

  model: str
  revision: str
  model_dtype: str
  tokenizer: str
  site: str
  layer: int
  d_model: int
  dtype: str
  format: str
  text: str
  packing: str
  context_length: int
  num_sequences: int
  bos_id: int
  special_ids: tuple[int, ...]
  seed: int
  sequences_per_bucket: int
  max_norm_multiple: float
  num_shards: int


class Store:
  """Reads a store as it is when opened; a missing shard counts as no rows.

  Attributes:
    description: what the store is of.
    missing: indices of the shards that are not there.
    rows_per_shard: rows of each shard.
  """

  def __init__(self, folder: str | os.PathLike):
    """Raises errors.InputError where no store is, or a damaged one."""
    self._folder, self._place = folder, places.at(folder)
    self.description = _read_description(self._place, folder)
    self._format = formats.get(self.description.format)
    self._sidecars = sidecars.read(
      self._place, self.description.num_shards, self.d_model
    )
    indices = range(self.description.num_shards)
    self.missing = tuple(i for i in indices if i not in self._sidecars)
    self.rows_per_shard = tuple(
      self._sidecars[i].rows if i in self._sidecars else 0 for i in indices
    )
    self._totals = sidecars.totals(self._sidecars, self.d_model)
    self._verified = set()

  @property
  def is_complete(self) -> bool:
    """True if no shard is missing."""
    return not self.missing

  @property
  def num_rows(self) -> int:
    """Rows in all shards."""
    return sum(self.rows_per_shard)

  @property
  def d_model(self) -> int:
    """D, size of a row."""
    return self.description.d_model

  @property
  def dtype(self) -> np.dtype:
    """Dtype of the rows."""
    return formats.DTYPES[self.description.dtype]

  @property
  def scale(self) -> float:
    """Root of the mean squared norm of shard 0; rows are divided by it."""
    return self._total('scale', 'shard 0 of it')

  @property
  def widths(self) -> tuple[int, ...]:
    """(D,): of a row that is input and target in one."""
    return (self.d_model,)

  @property
  def scales(self) -> tuple[float, ...]:
    """(scale,), as `widths`."""
    return (self.scale,)

  @property
  def mean_D(self) -> np.ndarray:
    """Mean of all rows, float64, not divided by the scale."""
    return np.array(self._total('mean', 'it'))

  @property
  def mean_squared_norm(self) -> float:
    """Mean of ||x||^2 over all rows."""
    return self._total('mean_squared_norm', 'it')

  @property
  def outlier_rate(self) -> float:
    """Share of the text's rows that were dropped for their norm."""
    return self._totals['outlier_rate']

  def median_norm(self) -> float:
    """Returns the median norm of shard 0, dropped outliers counted; reads it.

    An outlier's norm is above the median, whatever it is.
    """
    reader, outliers = self.open(0), self._sidecar(0).outliers
    pieces = range(0, len(reader), _ROWS_AT_A_TIME)
    norms = [
      np.linalg.norm(reader[i : i + _ROWS_AT_A_TIME].astype(np.float32), axis=1)
      for i in pieces
    ]
    return float(np.median(np.concatenate([*norms, [np.inf] * outliers])))

  def open(self, index: int) -> formats.Reader:
    """Returns the rows of a shard, [N, D] of the store's dtype, to be sliced.

    Npy checks the whole shard when this Store first opens it (about 0.1 s for
    1 GB in memory, else the time to read it once); zarr3 each block when it is
    read.

    Raises:
      errors.InputError: the shard is missing or damaged.
    """
    sidecar = self._sidecar(index)
    path = self._path(index)
    shape = (sidecar.rows, self.d_model)
    reader = self._format.open(path, shape, self.dtype)
    if not self._format.checks_blocks and index not in self._verified:
      sidecars.check(path, sidecar.rows_checksum, reader)
      self._verified.add(index)
    return reader

  def origin(self, index: int) -> np.ndarray:
    """Returns origin_N3 of a shard: token id, sequence, position; int32.

    Raises:
      errors.InputError: the shard is missing or damaged.
    """
    sidecar = self._sidecar(index)
    name = sidecars.stem(index) + _ORIGIN
    path, content = self._place.child(name), self._place.read([name])[0]
    if content is None:
      raise errors.InputError(f'{path} is missing; {formats.remedy(path)}')
    try:
      origin_N3 = np.load(io.BytesIO(content), allow_pickle=False)
    except errors.OF_DAMAGED_ARRAYS as error:
      raise formats.damaged(path, 'a .npy file', error) from error
    if origin_N3.shape != (sidecar.rows, 3):
      raise formats.damaged(path, [sidecar.rows, 3], list(origin_N3.shape))
    sidecars.check(path, sidecar.origin_checksum, origin_N3)
    return origin_N3

  def verify(self) -> list[tuple[int, str]]:
    """Reads all that is there; returns (index, problem) of each bad shard."""
    problems = []
    for index, sidecar in sorted(self._sidecars.items()):
      self._verified.discard(index)
      try:
        reader = self.open(index)
        if self._format.checks_blocks:  # else `open` has read it all
          sidecars.check(self._path(index), sidecar.rows_checksum, reader)
        self.origin(index)
      except errors.InputError as error:
        problems.append((index, str(error)))
    return problems

  def check_is_of(self, description: Description) -> None:
    """Raises errors.InputError if the store is of something else."""
    found, wanted = map(dataclasses.asdict, (self.description, description))
    if differing := identity.differences(found, wanted, 'wanted'):
      raise errors.InputError(
        f'{self._folder} holds a store of something else ({differing}); name '
        'another folder, or delete this one.'
      )

  def _path(self, index):
    return self._place.child(sidecars.stem(index) + self._format.suffix)

  def _sidecar(self, index):
    if index not in self._sidecars:
      raise errors.InputError(
        f'{self._folder} has no shard {index} (there are '
        f'{len(self._sidecars)} of {self.description.num_shards}); run '
        'experiments.harvest again: it makes those that are missing.'
      )
    return self._sidecars[index]

  def _total(self, name, what):
    if self._totals[name] is None:
      raise errors.InputError(
        f'{self._folder} has no {name}: {what} holds no rows; run '
        'experiments.harvest on more text.'
      )
    return self._totals[name]


def exists(folder: str | os.PathLike) -> bool:
  """True where a store has been begun."""
  return _MANIFEST in places.at(folder).names()


def write_shard(
  folder: str | os.PathLike,
  description: Description,
  index: int,
  rows_ND: np.ndarray,
  origin_N3: np.ndarray,
  outliers: int,
) -> None:
  """Writes a shard; one that was there before is replaced.

  Args:
    folder: path or URL of the store.
    description: what the store is of.
    index: of the shard.
    rows_ND: rows in the description's dtype, not scaled.
    origin_N3: token id, sequence and position of each row, int32.
    outliers: rows that were dropped for their norm.

  Raises:
    errors.DiskFullError: no space is left; nothing of this shard is left there.
    errors.InputError: it could not be written for another reason, or rows hold
      NaN or infinity.
  """
  assert 0 <= index < description.num_shards, index
  shapes.check(rows_ND=rows_ND, origin_N3=origin_N3)
  assert rows_ND.shape[1] == description.d_model, rows_ND.shape
  assert rows_ND.dtype == formats.DTYPES[description.dtype], rows_ND.dtype
  assert (origin_N3.shape[1], origin_N3.dtype) == (3, np.int32)
  stem, place = sidecars.stem(index), places.at(folder)
  shard_format = formats.get(description.format)
  sidecar = sidecars.describe(rows_ND, origin_N3, outliers)
  if not np.isfinite(sidecar.sum_squared_norm):
    raise errors.InputError(
      f'{stem}: rows hold NaN or infinity, expected finite numbers; the model '
      f'fails at {description.site} of layer {description.layer}: run it in '
      'float32, or check its weights.'
    )
  origin = io.BytesIO()
  np.save(origin, origin_N3)
  try:
    remove_shard(folder, index)
    shard_format.write(place.child(stem + shard_format.suffix), rows_ND)
    place.write(stem + _ORIGIN, origin.getvalue())
    sidecars.write(place, index, sidecar)
  except OSError as error:
    # Without a sidecar it is no shard, so what cannot be removed does no harm.
    with contextlib.suppress(OSError):
      remove_shard(folder, index)
    what = f'{stem} (of {description.num_shards})'
    size = sidecar.rows_bytes + len(origin.getvalue())
    raise _not_written(error, folder, what, size) from error


def write_manifest(folder: str | os.PathLike, description: Description) -> None:
  """Writes the manifest of the shards that are there.

  Raises:
    errors.DiskFullError: no space is left; the old manifest is.
    errors.InputError: it could not be written, or a sidecar is damaged.
  """
  place = places.at(folder)
  there = sidecars.read(place, description.num_shards, description.d_model)
  shards = [
    {
      'index': index,
      'rows': sidecar.rows,
      'checksum': sidecar.rows_checksum,
      'outliers': sidecar.outliers,
    }
    for index, sidecar in sorted(there.items())
  ]
  manifest = {
    'version': _VERSION,
    'complete': len(there) == description.num_shards,
    'description': dataclasses.asdict(description),
    **sidecars.totals(there, description.d_model),
    'shards': shards,
  }
  content = (json.dumps(manifest) + '\n').encode()
  try:
    place.write(_MANIFEST, content)
  except OSError as error:
    raise _not_written(error, folder, _MANIFEST, len(content)) from error


def remove_shard(folder: str | os.PathLike, index: int) -> None:
  """Removes all files of a shard, if there are any; raises OSError."""
  sidecars.remove(places.at(folder), index)


def _read_description(place, folder):
  content = place.read([_MANIFEST])[0]
  if content is None:
    raise errors.InputError(
      f'{folder} holds no store of activations: it has no {_MANIFEST}; run '
      'experiments.harvest first.'
    )
  try:
    raw = json_files.parse_object(content)
    version = raw.get('version')
    if version == _VERSION:
      fields = raw['description']
      fields['special_ids'] = tuple(fields['special_ids'])
      return Description(**fields)
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise errors.InputError(
      f'{folder}/{_MANIFEST} cannot be read ({error!r}); run '
      'experiments.harvest again: it makes no shard that is there again.'
    ) from error
  raise errors.InputError(
    f'{folder} holds a store of version {version}, expected {_VERSION}; '
    'harvest into another folder.'
  )


def _not_written(error, folder, what, size):
  """Returns the error of a write that failed, for want of space or else."""
  kind = errors.of_writing(error)
  is_full = kind is errors.DiskFullError
  free = places.at(folder).free_bytes()
  space = f'it needs about {size:,} bytes' + (
    '' if free is None else f' and {free:,} are free'
  )
  remedy = 'free some space' if is_full else 'mend that'
  return kind(
    f'{what} could not be written to {folder} ({error.strerror}): {space}. '
    'The shards written before are complete and usable; '
    f'{remedy} and give the same command again: it goes on from there.'
  )
