"""The device mesh and the one table that says how arrays lie on it."""

from __future__ import annotations

from collections.abc import Callable
import functools
import re
from typing import TypeVar

import jax
from jax.experimental import layout
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
#: Before RULES, if the optimizer's state is to lie over 'data' as well (ZeRO,
#: arXiv:1910.02054, stage 1): each device updates its share of a row, and the
#: rows are gathered again.
OPTIMIZER_RULES = (
  (r'opt_state/.*W_enc$', P('data', 'latent')),
  (r'opt_state/.*W_dec$', P('latent', 'data')),
)
#: Activations x_BD, and token ids: rows over 'data'.
BATCH = P('data', None)


#: SAEs of a sweep lie over 'sweep', each of them over the other two.
AXES = ('sweep', 'data', 'latent')
# Automatic axes: the compiler places the collectives.
_AUTO = (jax.sharding.AxisType.Auto,) * len(AXES)


def make_mesh(data: int, latent: int, sweep: int = 1) -> jax.sharding.Mesh:
  """Returns a mesh of AXES over the first sweep * data * latent devices.

  Raises:
    errors.InputError: there are not as many devices, or one of several
      processes has none of them.
  """
  devices, size = jax.devices(), sweep * data * latent
  if size > len(devices):
    raise errors.InputError(
      f'config.mesh=({data}, {latent}), sweep={sweep}, needs {size} devices, '
      f'but there are {len(devices)}; set config.mesh.data, config.mesh.latent '
      'and config.mesh.sweep so that their product fits.'
    )
  working = len({device.process_index for device in devices[:size]})
  if working < jax.process_count():
    raise errors.InputError(
      f'config.mesh=({data}, {latent}), sweep={sweep}, takes {size} of '
      f'{len(devices)} devices, all of them in {working} of '
      f'{jax.process_count()} processes; set config.mesh.data, '
      'config.mesh.latent and config.mesh.sweep so that every process has some.'
    )
  return jax.make_mesh(
    (sweep, data, latent), AXES, axis_types=_AUTO, devices=devices[:size]
  )


def local_mesh() -> jax.sharding.Mesh:
  """Returns a (1, 1, n) mesh over the devices of this process alone."""
  return of_devices(np.array(jax.local_devices())[None, None])


def of_devices(devices: np.ndarray) -> jax.sharding.Mesh:
  """Returns a mesh of AXES over devices that lie as they are."""
  return jax.sharding.Mesh(devices, AXES, axis_types=_AUTO)


def of_tree(
  mesh: jax.sharding.Mesh, tree: PyTree, *, divides_optimizer: bool = False
) -> PyTree:
  """Returns a NamedSharding for each leaf of a tree of arrays, by RULES.

  An axis that the mesh does not divide (three heads over two devices) is held
  whole; for SAEs the config is checked so that there is none.

  Raises:
    ValueError: no rule matches a leaf.
  """
  rules = (*OPTIMIZER_RULES, *RULES) if divides_optimizer else RULES

  def of_leaf(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    for pattern, spec in rules:
      if re.search(pattern, name):
        divided = [
          axis if axis and size % mesh.shape[axis] == 0 else None
          for axis, size in zip(spec, leaf.shape, strict=False)
        ]
        return NamedSharding(mesh, P(*divided))
    raise ValueError(f'No sharding rule for {name!r}; add one to RULES.')

  return jax.tree_util.tree_map_with_path(of_leaf, tree)


def stacked(layouts: PyTree, count: int) -> PyTree:
  """Returns the layouts of `count` such trees stacked: along 'sweep', too."""

  def of_leaf(layout):
    axis = 'sweep' if count % layout.mesh.shape['sweep'] == 0 else None
    return NamedSharding(layout.mesh, P(axis, *layout.spec))

  return jax.tree.map(of_leaf, layouts)


def on(mesh: jax.sharding.Mesh, fn: Callable) -> Callable:
  """Returns a function that knows the mesh while it is traced.

  What it calls may then say how its work is divided (`jax.shard_map`).
  """

  @functools.wraps(fn)
  def traced(*args):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return fn(*args)

  return traced


def lie_by_rows(tree: PyTree) -> PyTree:
  """Returns a tree whose matrices lie by rows on each device (see `on`).

  As parameters do. The TPU's compiler would else have the decoder's gradient
  lie the other way, and copy the decoder and its moments to and fro. Devices
  are told one by one: told of a whole matrix, it gathers that on some slices.
  """
  mesh = jax.sharding.get_abstract_mesh()
  # Along 'sweep' a leaf has an axis more, which no rule knows of.
  if mesh.empty or mesh.shape['sweep'] > 1:
    return tree

  def lie(piece):
    return layout.with_layout_constraint(piece, layout.Layout((0, 1)))

  def of_leaf(sharded, leaf):
    if leaf.ndim != 2:
      return leaf
    if mesh.size == 1:
      return lie(leaf)
    spec = sharded.spec
    return jax.shard_map(lie, in_specs=spec, out_specs=spec, check_vma=False)(
      leaf
    )

  return jax.tree.map(of_leaf, of_tree(mesh, tree), tree)


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
