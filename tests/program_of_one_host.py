"""One of the processes of tests/test_hosts.py; not a test itself.

python program_of_one_host.py INDEX COUNT PORT DATA LATENT STEPS FOLDER
"""

import os
import pathlib
import sys

index, count, port, data, latent, steps = map(int, sys.argv[1:7])
folder = pathlib.Path(sys.argv[7])
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax  # noqa: E402

jax.config.update('jax_num_cpu_devices', 4 // count)
if count > 1:
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(
    f'127.0.0.1:{port}', count, index, heartbeat_timeout_seconds=10
  )

import numpy as np  # noqa: E402
from small_planted import PlantedShards  # noqa: E402

from configs import quickstart  # noqa: E402
from jumprelu_jax import config as config_lib  # noqa: E402
from jumprelu_jax import loop  # noqa: E402
from jumprelu_jax import sharding  # noqa: E402


def run_of(steps):
  """Returns a small run; `steps` is where this process stops."""
  run = config_lib.RunConfig.from_config_dict(
    quickstart.get_config('quick').to_dict()
  )
  return run.with_values(
    {
      'sae.num_latents': 48,
      'sae.k': 4,
      'objective.aux_k': 4,
      'objective.target_l0': 4.0,
      'objective.bandwidth': 0.05,
      'objective.sparsity_coeff': 0.02,
      'objective.sparsity_warmup_steps': 0,
      'optimizer.warmup_steps': 2,
      'train.batch_size': 64,
      'train.steps': steps,
      'train.steps_per_log': 2,
      'train.steps_per_checkpoint': 4,
    }
  )


mesh = sharding.make_mesh(data, latent)
state = loop.fit(run_of(steps), PlantedShards(), mesh, folder)
gather = jax.jit(lambda tree: tree, out_shardings=sharding.replicated(mesh))
leaves = jax.device_get(jax.tree.leaves(gather(state)))
if index == 0:
  np.savez(folder / 'leaves.npz', *leaves)
