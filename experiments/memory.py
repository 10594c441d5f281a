"""Bytes on each chip of a harvest's forward pass, from the TPU compiler.

  pip install -e '.[tpu]'
  python -m experiments.memory --config=configs/gemma2_9b.py --topology=v5e:2x4

Compiles the pass ahead of time for TPUs that need not be there, with nothing
but the model's config.json (from --config.lm.path, or --lm_config=FILE), and
prints what the compiler reserves on a chip. A program that does not fit ends
with the compiler's own message.
"""

import os

# Before jax is imported: no TPU is looked for.
os.environ |= {
  'JAX_PLATFORMS': 'cpu',
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
  'TPU_LOG_DIR': 'disabled',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}

import json  # noqa: E402
import pathlib  # noqa: E402
import time  # noqa: E402

from absl import flags  # noqa: E402
import jax  # noqa: E402
from jax.experimental import topologies  # noqa: E402
import numpy as np  # noqa: E402

from experiments import launch  # noqa: E402
from jumprelu_jax import errors  # noqa: E402
from jumprelu_jax import sharding  # noqa: E402
from jumprelu_jax.lm import hf_config  # noqa: E402
from jumprelu_jax.lm import huggingface  # noqa: E402
from jumprelu_jax.lm import sites  # noqa: E402
from jumprelu_jax.lm import transformer  # noqa: E402

_TOPOLOGY = flags.DEFINE_string('topology', 'v5e:2x4', 'TPU slice.')
_LM_CONFIG = flags.DEFINE_string('lm_config', None, "The model's config.json.")
_GIB = 2**30


def topology_mesh(name, data, latent):
  """Returns a ('data', 'latent') mesh of chips that need not be there."""
  try:
    chips = topologies.get_topology_desc(
      platform='tpu', topology_name=name
    ).devices
  except Exception as error:  # a missing libtpu and a bad name look alike
    raise errors.InputError(
      f'--topology={name} cannot be compiled for ({error}); it needs '
      "pip install -e '.[tpu]' and a name such as v5e:2x4."
    ) from error
  if data * latent != len(chips):
    raise errors.InputError(
      f'config.mesh=({data}, {latent}) has {data * latent} chips, but '
      f'{name} has {len(chips)}; set config.mesh.data and config.mesh.latent.'
    )
  grid = np.asarray(chips).reshape(data, latent)
  return jax.sharding.Mesh(grid, ('data', 'latent'))


def compile_tap(architecture, where, run, mesh):
  """Returns the compiled pass over one batch of sequences."""
  architecture = architecture.cut(1 + max(site.layer for site in where))
  model = huggingface.abstract(architecture, run.lm.dtype)
  model = jax.tree.map(
    lambda leaf, layout: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=layout
    ),
    model,
    sharding.of_tree(mesh, model),
  )
  shape = (run.activations.sequences_per_batch, run.text.context_length)
  tokens = jax.ShapeDtypeStruct(
    shape, 'int32', sharding=sharding.of_batch(mesh)
  )

  def tap(model, tokens_BL):
    found = transformer.tap(model, tokens_BL, where)
    return tuple(x_BLD.astype(run.activations.dtype) for x_BLD in found)

  return jax.jit(tap).lower(model, tokens).compile(), model


def shard_bytes(tree):
  """Returns the bytes of one chip's part of a tree."""
  return sum(
    int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def main():
  run = launch.run_config()
  where = tuple(map(sites.parse, run.activations.sites)) or (
    sites.Site(run.lm.site, run.lm.layer),
  )
  if _LM_CONFIG.value:
    values = json.loads(pathlib.Path(_LM_CONFIG.value).read_text())
    architecture = hf_config.architecture(values, _LM_CONFIG.value)
  else:
    folder, _ = huggingface.resolve(run.lm.path, run.lm.revision)
    architecture = huggingface.load_architecture(folder)
  mesh = topology_mesh(_TOPOLOGY.value, run.mesh.data, run.mesh.latent)
  began = time.perf_counter()
  compiled, model = compile_tap(architecture, where, run, mesh)
  seconds = time.perf_counter() - began
  memory = compiled.memory_analysis()
  print(
    f'{_TOPOLOGY.value}, mesh {run.mesh.data} x {run.mesh.latent}, '
    f'{len(where)} sites, {run.activations.sequences_per_batch} sequences of '
    f'{run.text.context_length}; compiled in {seconds:.0f} s'
  )
  for name, size in (
    ('parameters', shard_bytes(model)),
    ('arguments', memory.argument_size_in_bytes),
    ('results', memory.output_size_in_bytes),
    ('temporaries', memory.temp_size_in_bytes),
    ('program', memory.generated_code_size_in_bytes),
  ):
    print(f'{name:12s} {size / _GIB:7.3f} GiB a chip')


if __name__ == '__main__':
  launch.run(main)
