"""TPU slices that need not be there, and what a chip of each can do."""

from __future__ import annotations

import dataclasses

import jax
from jax.experimental import mesh_utils
from jax.experimental import topologies

from jumprelu_jax import errors
from jumprelu_jax import sharding

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """Peak figures of one device, as its maker publishes them.

  Attributes:
    flops: bfloat16 operations a second.
    memory_bytes: of high-bandwidth memory.
    memory_rate: bytes a second to and from it.
    link_rate: bytes a second out to its neighbours, over all links.
  """

  flops: float
  memory_bytes: float
  memory_rate: float
  link_rate: float


#: Devices by the first word of a topology's name.
CHIPS = {
  'v4': Chip(275e12, 32 * GIB, 1.228e12, 3.0e11),
  'v5e': Chip(197e12, 16 * GIB, 8.19e11, 2.0e11),
  'v5p': Chip(459e12, 95 * GIB, 2.765e12, 6.0e11),
  'v6e': Chip(918e12, 32 * GIB, 1.64e12, 4.48e11),
}
# By default the compiler takes a core for a device; pods run with one a chip.
_MEGACORE = ('v4', 'v5p')


def chip_of(topology: str) -> Chip:
  """Returns the chip of a topology such as 'v5e:2x4'.

  Raises:
    errors.InputError: it is not known.
  """
  name = topology.partition(':')[0]
  if name not in CHIPS:
    raise errors.InputError(
      f'--topology={topology}: expected one of {", ".join(CHIPS)}, with the '
      'shape of the slice, such as v5e:2x4.'
    )
  return CHIPS[name]


def mesh_of(topology: str, data: int, latent: int) -> jax.sharding.Mesh:
  """Returns a mesh of a slice's chips, for one SAE at a time.

  Raises:
    errors.InputError: the topology cannot be compiled for, or has another
      number of chips.
  """
  chip_of(topology)
  options = {}
  if topology.partition(':')[0] in _MEGACORE:
    options['chip_config_name'] = 'megacore'
  try:
    chips = topologies.get_topology_desc(
      platform='tpu', topology_name=topology, **options
    ).devices
  except Exception as error:  # a missing libtpu and a bad name look alike
    raise errors.InputError(
      f'--topology={topology} cannot be compiled for ({error}); it needs '
      "pip install -e '.[tpu]' and a name such as v5e:2x4."
    ) from error
  if data * latent != len(chips):
    raise errors.InputError(
      f'mesh {data} x {latent} has {data * latent} chips, but {topology} has '
      f'{len(chips)}; set --mesh or config.mesh.'
    )
  grid = mesh_utils.create_device_mesh(
    (1, data, latent), chips, allow_split_physical_axes=True
  )
  return sharding.of_devices(grid)
