"""The device mesh and the one table that says how arrays lie on it."""

from __future__ import annotations

import re
from typing import TypeVar

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from jumprelu_jax import errors

PyTree = TypeVar('PyTree')

#: (pattern of a leaf's path, layout); the first match counts. Paths end in the
#: parameter's name, so Adam's moments lie as their parameters do.
#: A language model lies on the same mesh: its heads, its MLP's width and its
#: vocabulary over 'latent'. Its blocks are stacked, hence the first None.
RULES = (
  (r'W_enc$', P(None, 'latent')),
  (r'W_dec$', P('latent', None)),
  (r'components/.*_M$', P('latent')),
  (r'components/', P()),
  (r'(b_enc|b_gate|b_mag|r_mag|threshold)$', P('latent')),
  (r'(W_skip|b_dec|step|count)$', P()),
  (r'(embed|head)_VD$', P('latent', None)),
  (r'blocks/W_[qkv]_D[HG]K$', P(None, None, 'latent', None)),
  (r'blocks/b_[qkv]_[HG]K$', P(None, 'latent', None)),
  (r'blocks/W_o_HKD$', P(None, 'latent', None, None)),
  (r'blocks/W_(gate|up)_DF$', P(None, None, 'latent')),
  (r'blocks/b_(gate|up)_F$', P(None, 'latent')),
  (r'blocks/W_down_FD$', P(None, 'latent', None)),
  (r'(norm\w*|blocks/b_(o|down)|positions)_C?[DK]$', P()),
)
#: Activations x_BD, and token ids: rows over 'data'.
BATCH = P('data', None)


def make_mesh(data: int, latent: int) -> jax.sharding.Mesh:
  """Returns a ('data', 'latent') mesh over the first data * latent devices.

  Raises:
    errors.InputError: there are not as many devices.
  """
  devices = jax.devices()
  if data * latent > len(devices):
    raise errors.InputError(
      f'config.mesh=({data}, {latent}) needs {data * latent} devices, but '
      f'there are {len(devices)}; set config.mesh.data and '
      'config.mesh.latent so that their product fits.'
    )
  # Automatic axes: the compiler places the collectives.
  auto = (jax.sharding.AxisType.Auto,) * 2
  return jax.make_mesh(
    (data, latent),
    ('data', 'latent'),
    axis_types=auto,
    devices=devices[: data * latent],
  )


def local_mesh() -> jax.sharding.Mesh:
  """Returns a (1, n) mesh over the devices of this process alone."""
  devices = np.array(jax.local_devices())[None]
  auto = (jax.sharding.AxisType.Auto,) * 2
  return jax.sharding.Mesh(devices, ('data', 'latent'), axis_types=auto)


def of_tree(mesh: jax.sharding.Mesh, tree: PyTree) -> PyTree:
  """Returns a NamedSharding for each leaf of a tree of arrays, by RULES.

  An axis that the mesh does not divide (three heads over two devices) is held
  whole; for SAEs the config is checked so that there is none.

  Raises:
    ValueError: no rule matches a leaf.
  """

  def of_leaf(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    for pattern, spec in RULES:
      if re.search(pattern, name):
        divided = [
          axis if axis and size % mesh.shape[axis] == 0 else None
          for axis, size in zip(spec, leaf.shape, strict=False)
        ]
        return NamedSharding(mesh, P(*divided))
    raise ValueError(f'No sharding rule for {name!r}; add one to RULES.')

  return jax.tree_util.tree_map_with_path(of_leaf, tree)


def of_batch(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Returns the layout of a batch of activations x_BD."""
  return NamedSharding(mesh, BATCH)


def local_rows(mesh: jax.sharding.Mesh, batch_size: int) -> tuple[int, int]:
  """Returns (first, stop) of a batch's rows that this process's devices hold.

  All of them on one host, or where the hosts divide the latents alone.
  """
  bounds = _rows_by_device(mesh, batch_size).values()
  return min(first for first, _ in bounds), max(stop for _, stop in bounds)


def place_batch(
  mesh: jax.sharding.Mesh, rows_BD: np.ndarray, batch_size: int
) -> jax.Array:
  """Returns a batch on the mesh, of which each process gives `local_rows`."""
  start, _ = local_rows(mesh, batch_size)
  # Not `jax.make_array_from_process_local_data`, which a transfer guard takes
  # for a transfer that nobody asked for.
  shards = [
    jax.device_put(rows_BD[first - start : stop - start], device)
    for device, (first, stop) in _rows_by_device(mesh, batch_size).items()
  ]
  shape = (batch_size, rows_BD.shape[1])
  return jax.make_array_from_single_device_arrays(shape, of_batch(mesh), shards)


def _rows_by_device(mesh, batch_size):
  """Returns (first, stop) of the rows of each of this process's devices."""
  indices = of_batch(mesh).addressable_devices_indices_map((batch_size, 1))
  return {
    device: rows.indices(batch_size)[:2]
    for device, (rows, _) in indices.items()
  }


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Returns the layout of what every device holds whole."""
  return NamedSharding(mesh, P())
