"""What a run takes, in bytes at most, before it does."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import os
from typing import TypeVar

import numpy as np

from jumprelu_jax import config as config_lib
from jumprelu_jax import inputs as inputs_lib
from jumprelu_jax import space
from jumprelu_jax import train
from jumprelu_jax.activations import formats

_Item = TypeVar('_Item')

_TOKEN_BYTES = np.dtype(np.int32).itemsize
_ORIGIN_BYTES = 3 * _TOKEN_BYTES
_FLOAT_BYTES = np.dtype(np.float32).itemsize
_FEWER_ROWS = (
  'lower config.activations.sequences, set config.activations.dtype=bfloat16, '
  "or train with config.activations.mode='live', which stores no rows"
)
_FEWER_STATES = (
  'train fewer SAEs in one sweep, or lower config.train.checkpoints_kept'
)


def of_harvest(inputs: inputs_lib.Inputs, num_sequences: int) -> dict[str, int]:
  """Returns bytes of the tokens and of each site's store."""
  run = inputs.run
  tokens = num_sequences * run.text.context_length
  item = formats.DTYPES[run.activations.dtype].itemsize
  found = {'tokens': tokens * _TOKEN_BYTES}
  for site in inputs.harvested:
    width = inputs.architecture.site_dim(site.name)
    found[f'rows of {site}'] = tokens * (width * item + _ORIGIN_BYTES)
  return found


def of_training(
  inputs: inputs_lib.Inputs, runs: Iterable[config_lib.RunConfig]
) -> dict[str, int]:
  """Returns bytes of SAEs' checkpoints and of what is released of them."""
  found = {'checkpoints': 0, 'SAEs': 0}
  width = sum(inputs.widths) if len(inputs.widths) > 1 else 2 * inputs.widths[0]
  for run in runs:
    # One more than are kept: the next is complete before the oldest goes.
    count = run.train.checkpoints_kept + 1
    found['checkpoints'] += count * train.num_bytes(run, inputs.widths)
    found['SAEs'] += run.sae.num_latents * (width + 2) * _FLOAT_BYTES
  return found


def check_harvest(
  inputs: inputs_lib.Inputs, folder: str | os.PathLike, num_sequences: int
) -> None:
  """Raises errors.DiskFullError if a harvest does not fit on its disk."""
  space.check(folder, of_harvest(inputs, num_sequences), _FEWER_ROWS)


def check_run(
  inputs: inputs_lib.Inputs,
  workdir: str | os.PathLike,
  named: Mapping[str, config_lib.RunConfig],
) -> None:
  """Raises errors.DiskFullError if a run does not fit on its disk.

  Args:
    inputs: of the run.
    workdir: its folder.
    named: SAEs that are to be trained, by the names of their folders.

  Rows count only where it is known how many there will be: of a text that is
  taken whole, when it has been packed (`check_harvest`).
  """
  config, parts = inputs.run.activations, list(named)
  wanted, remedies = of_training(inputs, named.values()), [_FEWER_STATES]
  if config.mode == 'stored' and not config.store and config.sequences:
    wanted |= of_harvest(inputs, config.sequences)
    remedies.append(_FEWER_ROWS)
    parts.append('activations')
  space.check(workdir, wanted, '; or '.join(remedies), parts)


def in_lists(
  items: Sequence[_Item], sizes: Sequence[int], limit: int
) -> Iterator[list[_Item]]:
  """Yields items, in order, in lists whose sizes add up to the limit at most.

  An item that is larger than the limit has a list of its own.
  """
  group, total = [], 0
  for item, size in zip(items, sizes, strict=True):
    if group and total + size > limit:
      yield group
      group, total = [], 0
    group.append(item)
    total += size
  if group:
    yield group
