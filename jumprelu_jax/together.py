"""Several SAEs that one program trains: their states stacked, by `vmap`.

Small SAEs leave an accelerator idle if their steps come one after another; and
along the mesh's 'sweep' axis each group of devices has SAEs of its own. On a
CPU turns are faster (docs/benchmarks.md), and so they are for sparse steps,
whose fall back to dense ones `vmap` would take for all. Results are the same up
to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
import functools
from typing import NamedTuple

import jax
from jax import numpy as jnp
import numpy as np

from jumprelu_jax import config as config_lib
from jumprelu_jax import sharding
from jumprelu_jax import train

# Of a step's arrays of shape [batch, latents] those that live at a time.
_ARRAYS = 6


class Program(NamedTuple):
  """What trains one SAE, or several that only differ in what is traced.

  Attributes:
    init: a JAX random key → state of one.
    join: list of states → one state of all; may be the states' own memory.
    step: (joined, rows_BD, scale, `numbers_of`) → (joined, metrics), each
      metric a number or [K]; donates the state.
    member: (joined, i) → state of one.
  """

  init: Callable
  join: Callable
  step: Callable
  member: Callable


def groups(
  runs: Sequence[config_lib.RunConfig],
  widths: tuple[int, ...],
  mesh: jax.sharding.Mesh,
  limit: int,
) -> list[list[int]]:
  """Returns which runs one program is to train, as lists of their indices.

  Args:
    runs: configs of one stream.
    widths: as `train.init_state`.
    mesh: where to train.
    limit: bytes that a group's states and activations may take of a device.
  """
  if not pays(mesh):
    return [[i] for i in range(len(runs))]
  alike = {}
  for i, run in enumerate(runs):
    alike.setdefault(train.untraced(run, mesh), []).append(i)
  found = []
  for run, indices in alike.items():
    size = (
      1 if train.capacity_of(run, mesh) else _most(run, widths, mesh, limit)
    )
    starts = range(0, len(indices), size)
    found += [indices[start : start + size] for start in starts]
  return found


def pays(mesh: jax.sharding.Mesh) -> bool:
  """True where one program for several SAEs is faster than their turns."""
  return mesh.shape['sweep'] > 1 or mesh.devices.flat[0].platform != 'cpu'


def compile_for(
  runs: Sequence[config_lib.RunConfig],
  widths: tuple[int, ...],
  mesh: jax.sharding.Mesh,
) -> Program:
  """Returns the program of one run, or of several that are equal `untraced`."""
  init, step = train.compile_for(runs[0], widths, mesh)
  if len(runs) == 1:
    return Program(init, _only, step, lambda joined, i: joined)
  return _stacked(train.untraced(runs[0], mesh), widths, mesh, len(runs))


def numbers_of(runs: Sequence[config_lib.RunConfig]) -> train.Numbers:
  """Returns what of a program's runs is traced; float32, [K] of several."""
  numbers = [train.numbers_of(run) for run in runs]
  if len(runs) == 1:
    return numbers[0]
  return jax.tree.map(lambda *leaves: np.stack(leaves), *numbers)


def _only(states):
  (state,) = states
  return state


@functools.lru_cache(maxsize=8)
def _stacked(run, widths, mesh, count):
  """Returns the program of several runs."""
  init, _ = train.compile_for(run, widths, mesh)
  one = train.layout_of(run, widths, mesh)
  layout = sharding.stacked(one, count)
  step = jax.vmap(train.step_of(run, widths, mesh), in_axes=(0, None, None, 0))
  return Program(
    init=init,
    join=jax.jit(_stack, out_shardings=layout),
    step=jax.jit(
      sharding.on(mesh, step),
      in_shardings=(layout, sharding.of_batch(mesh), None, None),
      out_shardings=(layout, None),
      donate_argnums=0,
    ),
    member=jax.jit(
      lambda joined, i: jax.tree.map(lambda leaf: leaf[i], joined),
      static_argnums=1,
      out_shardings=one,
    ),
  )


def _stack(states):
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def _most(run, widths, mesh, limit):
  """Returns how many SAEs like this one fit on the mesh, 1 at least."""
  shape = mesh.shape
  state = train.num_bytes(run, widths) / shape['latent']
  rows, latents = run.train.batch_size, run.sae.num_latents
  activations = 4 * _ARRAYS * rows * latents / shape['data'] / shape['latent']
  return max(1, int(limit / (state + activations))) * shape['sweep']
