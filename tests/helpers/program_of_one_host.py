"""One of the processes of tests/helpers/several_hosts.py; not a test itself.

python program_of_one_host.py INDEX COUNT PORT DATA LATENT STEPS STOP FOLDER

Trains for STEPS; unless STOP is 0, ends after the checkpoint of step STOP.
"""

import os
import pathlib
import sys

index, count, port, data, latent, steps, stop = map(int, sys.argv[1:8])
folder = pathlib.Path(sys.argv[8])
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax  # noqa: E402

jax.config.update('jax_num_cpu_devices', 4 // count)
if count > 1:
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(
    f'127.0.0.1:{port}', count, index, heartbeat_timeout_seconds=10
  )

import numpy as np  # noqa: E402

from configs import quickstart  # noqa: E402
from helpers.small_planted import PlantedShards  # noqa: E402
from jumprelu_jax import checkpoint  # noqa: E402
from jumprelu_jax import config as config_lib  # noqa: E402
from jumprelu_jax import loop  # noqa: E402
from jumprelu_jax import preemption  # noqa: E402
from jumprelu_jax import sharding  # noqa: E402

save = checkpoint.Checkpointer.save


def save_and_stop(self, step, *arguments):
  """Saves; ends the process if this is where it is to stop."""
  save(self, step, *arguments)
  if step == stop:
    os._exit(0)


def run_of(steps):
  """Returns a small run."""
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


checkpoint.Checkpointer.save = save_and_stop
mesh = sharding.make_mesh(data, latent)
try:
  state = loop.fit(run_of(steps), PlantedShards(), mesh, folder)
except preemption.PreemptedError:
  sys.exit(preemption.EXIT_CODE)
gather = jax.jit(lambda tree: tree, out_shardings=sharding.replicated(mesh))
leaves = jax.device_get(jax.tree.leaves(gather(state)))
if index == 0:
  np.savez(folder / 'leaves.npz', *leaves)
