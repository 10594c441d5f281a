"""What is kept of a shard beside its rows: checksums and sums.

A sidecar is the JSON of one shard. It is written last, so a shard exists where
its sidecar does. Totals over a store are sums over its sidecars.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import json
import os

import numpy as np
import xxhash

from jumprelu_jax import json_files
from jumprelu_jax import seals
from jumprelu_jax.activations import formats
from jumprelu_jax.activations import places

# Sums and checksums go in pieces: a float64 copy of a shard would be too large.
_PIECE_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True)
class Sidecar:
  """What is kept of a shard.

  Attributes:
    rows: N; may be 0.
    rows_bytes: bytes of the rows as they are in memory.
    rows_checksum: XXH3-128 of these bytes, the same in every format.
    origin_checksum: XXH3-128 of the origin's bytes.
    sum_squared_norm: sum of ||x||^2 over the rows, in float64.
    sum_D: sum of the rows, in float64.
    outliers: rows that were dropped for their norm.
  """

  rows: int
  rows_bytes: int
  rows_checksum: str
  origin_checksum: str
  sum_squared_norm: float
  sum_D: tuple[float, ...]
  outliers: int


def stem(index: int) -> str:
  """Returns how the names of all files of a shard begin, before the dot."""
  return f'shard_{index:05d}'


def describe(
  rows_ND: np.ndarray, origin_N3: np.ndarray, outliers: int
) -> Sidecar:
  """Returns the sidecar of a shard."""
  sum_squared_norm, sum_D = 0.0, np.zeros(rows_ND.shape[1])
  for piece_ND in _pieces(rows_ND):
    exact_ND = piece_ND.astype(np.float64)
    sum_squared_norm += float(np.vdot(exact_ND, exact_ND))
    sum_D += exact_ND.sum(0)
  return Sidecar(
    rows=len(rows_ND),
    rows_bytes=rows_ND.nbytes,
    rows_checksum=checksum(rows_ND),
    origin_checksum=checksum(origin_N3),
    sum_squared_norm=sum_squared_norm,
    sum_D=tuple(sum_D.tolist()),
    outliers=outliers,
  )


def _pieces(reader) -> Iterator[np.ndarray]:
  """Yields all rows in pieces that are whole blocks."""
  if not len(reader):
    return
  blocks = _PIECE_BYTES // reader[:1].nbytes // formats.BLOCK_ROWS
  rows = max(1, blocks) * formats.BLOCK_ROWS
  for start in range(0, len(reader), rows):
    yield reader[start : start + rows]


def checksum(reader: formats.Reader) -> str:
  """Returns the XXH3-128 of the rows' bytes in memory."""
  state = xxhash.xxh3_128()
  for piece_ND in _pieces(reader):
    state.update(np.ascontiguousarray(piece_ND).view(np.uint8))
  return state.hexdigest()


def check(
  path: str | os.PathLike, expected: str, reader: formats.Reader
) -> None:
  """Raises errors.InputError if the rows' checksum is not what it was."""
  got = checksum(reader)
  if got != expected:
    raise formats.damaged(path, f'checksum {expected}', got)


def scale(sidecar: Sidecar) -> float:
  """Returns the root of the mean squared norm of a shard's rows."""
  return (sidecar.sum_squared_norm / sidecar.rows) ** 0.5


def totals(
  sidecars: Mapping[int, Sidecar], d_model: int
) -> dict[str, int | float | list[float] | None]:
  """Returns the sums over shards; None where there are no rows for a mean."""
  shards = sidecars.values()
  rows = sum(shard.rows for shard in shards)
  outliers = sum(shard.outliers for shard in shards)
  sum_D = np.zeros(d_model)
  for shard in shards:
    sum_D += shard.sum_D
  sum_squared_norm = sum(shard.sum_squared_norm for shard in shards)
  first = sidecars.get(0)
  return {
    'num_rows': rows,
    'scale': scale(first) if first is not None and first.rows else None,
    'mean_squared_norm': sum_squared_norm / rows if rows else None,
    'outlier_rate': outliers / max(1, rows + outliers),
    'mean': (sum_D / rows).tolist() if rows else None,
  }


def write(
  place: places.Local | places.Remote, index: int, sidecar: Sidecar
) -> None:
  """Writes the sidecar of a shard; raises OSError."""
  content = json.dumps(seals.signed(dataclasses.asdict(sidecar))) + '\n'
  place.write(_name(index), content.encode())


def read(
  place: places.Local | places.Remote, num_shards: int, d_model: int
) -> dict[int, Sidecar]:
  """Returns the sidecars that are there, by index.

  Raises:
    errors.InputError: one is damaged.
  """
  there = place.names()
  indices = [i for i in range(num_shards) if _name(i) in there]
  contents = place.read([_name(i) for i in indices])
  return {
    index: _parse(place.child(_name(index)), content, d_model)
    for index, content in zip(indices, contents, strict=True)
  }


def remove(place: places.Local | places.Remote, index: int) -> None:
  """Removes all files of a shard, if there are any; raises OSError."""
  place.delete(_name(index))  # first: then it is no shard any more
  place.delete(stem(index) + '.')


def _name(index):
  return stem(index) + '.json'


def _parse(path, content, d_model):
  try:
    raw = seals.check_signed(json_files.parse_object(content))
    raw['sum_D'] = tuple(raw['sum_D'])
    sidecar = Sidecar(**raw)
  except (ValueError, TypeError, KeyError) as error:
    raise formats.damaged(path, 'a sidecar', repr(error)) from error
  if len(sidecar.sum_D) != d_model:
    got = len(sidecar.sum_D)
    raise formats.damaged(path, f'd_model={d_model}', got)
  return sidecar
