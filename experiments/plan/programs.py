"""A compiled program's account: memory, operations, collectives, time."""

from __future__ import annotations

import collections
from collections.abc import Iterator
import dataclasses
import re

from experiments.plan import chips

_BYTES = {
    'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's16': 2, 'u16': 2,
    'f32': 4, 's32': 4, 'u32': 4, 'f64': 8, 's64': 8, 'u64': 8,
}  # fmt: skip
_KINDS = 'all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute'
# '%x = (f32[8,4]{1,0}, bf16[2]{0}) all-reduce-start(' and '… all-reduce('; what
# ends an asynchronous one is not counted again.
_COLLECTIVE = re.compile(rf'= (\(?[^=]*?) ({_KINDS})(-start)?\(')
_COMMENT = re.compile(r'/\*.*?\*/')  # '/*index=5*/', in long tuples
_ARRAY = re.compile(r'(\w+)\[([\d,]*)\]')


@dataclasses.dataclass(frozen=True)
class Collective:
  """Collectives of one kind and dtype.

  Attributes:
    kind: such as 'all-reduce'.
    dtype: of what is sent.
    count: how many there are.
    num_bytes: of their results, on a chip.
  """

  kind: str
  dtype: str
  count: int
  num_bytes: int


@dataclasses.dataclass(frozen=True)
class Account:
  """What a compiled program takes of each chip.

  Attributes:
    argument_bytes: of what goes in, the state among it.
    output_bytes: of what comes out and has no place of its own among that.
    temporary_bytes: while it runs.
    peak_bytes: at most, as the compiler says.
    flops: as the compiler counts them; too few where there are loops.
    memory_traffic: bytes to and from memory, likewise.
    has_loops: whether there are.
    collectives: by kind and dtype.
  """

  argument_bytes: int
  output_bytes: int
  temporary_bytes: int
  peak_bytes: int
  flops: float
  memory_traffic: float
  has_loops: bool
  collectives: tuple[Collective, ...]


def account(compiled) -> Account:
  """Returns the account of a `jax.stages.Compiled`."""
  memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
  text = compiled.as_text()
  outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return Account(
    argument_bytes=memory.argument_size_in_bytes,
    output_bytes=outputs,
    temporary_bytes=memory.temp_size_in_bytes,
    peak_bytes=memory.peak_memory_in_bytes,
    flops=cost.get('flops', 0.0),
    memory_traffic=cost.get('bytes accessed', 0.0),
    has_loops=bool(re.search(r'[ )]while\(', text)),
    collectives=tuple(collectives(text)),
  )


def collectives(hlo: str) -> Iterator[Collective]:
  """Yields the collectives of a program's text, by kind and dtype."""
  found = collections.Counter(), collections.Counter()
  for line in hlo.splitlines():
    match = _COLLECTIVE.search(_COMMENT.sub('', line))
    if not match:
      continue
    shapes, kind, is_start = match.groups()
    arrays = [(dtype, _size(dims)) for dtype, dims in _ARRAY.findall(shapes)]
    arrays = [(dtype, n) for dtype, n in arrays if dtype in _BYTES]
    if is_start and len(arrays) > 1:
      arrays = arrays[len(arrays) // 2 :]  # operands come first, then results
    dtypes = {dtype for dtype, _ in arrays}
    for dtype in dtypes:
      found[0][kind, dtype] += 1
    for dtype, size in arrays:
      found[1][kind, dtype] += size * _BYTES[dtype]
  for (kind, dtype), count in sorted(found[0].items()):
    yield Collective(kind, dtype, count, found[1][kind, dtype])


def seconds(found: Account, chip: chips.Chip, flops: float) -> dict[str, float]:
  """Returns a roofline estimate: what each resource alone would need.

  An estimate, not a measurement: nothing is run, peaks are the maker's, and
  collectives are taken not to overlap with anything.

  Args:
    found: the program's account.
    chip: what it runs on.
    flops: counted by hand, for a chip.
  """
  compute = flops / chip.flops
  memory = found.memory_traffic / chip.memory_rate
  # A ring sends what it reduces twice, and what it gathers once.
  sent = sum(
    c.num_bytes * (2 if c.kind == 'all-reduce' else 1)
    for c in found.collectives
  )
  links = sent / chip.link_rate
  return {
    'compute': compute,
    'memory': memory,
    'links': links,
    'step': max(compute, memory) + links,
  }


def _size(dims):
  size = 1
  for dim in dims.split(','):
    size *= int(dim or 1)
  return size
