"""JSON from files that may be damaged, or made to do harm."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

# No file of ours, and no config of anyone's, is nested any deeper.
_MOST_DEPTH = 64
# A config or a header; real ones have some kilobytes.
_MOST_BYTES = 2**24


def parse(content: bytes | str) -> Any:
  """Returns what JSON says; ValueError if it is none, or nested too deep."""
  try:
    value = json.loads(content)
  except RecursionError:
    raise ValueError('it is nested too deep') from None
  level, depth = [value], 0
  while level:
    if depth > _MOST_DEPTH:
      raise ValueError(f'it is nested deeper than {_MOST_DEPTH}')
    depth += 1
    level = [
      inner
      for outer in level
      if isinstance(outer, dict | list)
      for inner in (outer.values() if isinstance(outer, dict) else outer)
      if isinstance(inner, dict | list)
    ]
  return value


def parse_object(content: bytes | str) -> dict[str, Any]:
  """Returns a JSON object; ValueError as `parse`, and for anything else."""
  value = parse(content)
  if not isinstance(value, dict):
    raise ValueError(f'it holds a {type(value).__name__}, expected an object')
  return value


def read_object(path: str | os.PathLike) -> dict[str, Any]:
  """Returns the object of a file of some MiB; ValueError as `parse_object`."""
  path = pathlib.Path(path)
  size = path.stat().st_size
  if size > _MOST_BYTES:
    raise ValueError(f'{size:,} bytes are too many for such a file')
  return parse_object(path.read_bytes())
