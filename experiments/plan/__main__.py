"""What a step of training takes on each chip of a TPU slice, with no TPU.

  pip install -e '.[tpu]'
  python -m experiments.plan --config=configs/gemma2_9b.py --topology=v5e:2x4 \
      --mesh=1,8 --d_model=3584

Compiles the very step that `experiments.train` takes, for chips that need not
be there, and prints what the compiler reserves on a chip, its operations beside
those counted by hand, its collectives, and an estimate of its time. With
--harvest, the pass of the language model likewise, from its config.json.
A program that does not fit ends with the compiler's own message.
"""

import pathlib
import time

from absl import flags

from experiments import launch
from experiments.plan import ahead
from experiments.plan import chips
from experiments.plan import programs
from jumprelu_jax import errors
from jumprelu_jax import train
from jumprelu_jax.lm import hf_config
from jumprelu_jax.lm import hf_weights
from jumprelu_jax.lm import huggingface
from jumprelu_jax.lm import sites

_TOPOLOGY = flags.DEFINE_string('topology', 'v5e:2x4', 'TPU slice.')
_MESH = flags.DEFINE_list('mesh', None, 'data,latent; by default config.mesh.')
_D_MODEL = flags.DEFINE_integer(
  'd_model', None, "Size of an activation; by default the model's."
)
_HARVEST = flags.DEFINE_bool('harvest', False, 'Plan the harvest instead.')
_LM_CONFIG = flags.DEFINE_string('lm_config', None, "The model's config.json.")


def architecture_of(run):
  """Returns the language model's architecture, from nothing but its config."""
  if _LM_CONFIG.value:
    values = hf_weights.load_json(pathlib.Path(_LM_CONFIG.value))
    return hf_config.architecture(values, _LM_CONFIG.value)
  folder, _ = huggingface.resolve(run.lm.path, run.lm.revision)
  return huggingface.load_architecture(folder)


def with_mesh(run):
  """Returns the run with the mesh that --mesh asks for."""
  if _MESH.value is None:
    return run
  try:
    data, latent = map(int, _MESH.value)
  except ValueError as error:
    raise errors.InputError(
      f'--mesh={",".join(_MESH.value)}: expected two numbers, data,latent, '
      'such as 1,8.'
    ) from error
  return run.with_values({'mesh.data': data, 'mesh.latent': latent})


def print_account(found, chip):
  """Prints what a program takes of a chip, and whether it fits."""
  for name, size in (
    ('arguments', found.argument_bytes),
    ('results', found.output_bytes),
    ('temporaries', found.temporary_bytes),
    ('peak', found.peak_bytes),
  ):
    print(f'{name:12s} {size / chips.GIB:8.3f} GiB a chip')
  share = found.peak_bytes / chip.memory_bytes
  print(f'fits: {share:.0%} of {chip.memory_bytes / chips.GIB:.0f} GiB')
  for one in found.collectives:
    print(
      f'{one.kind} {one.dtype}: {one.count}, {one.num_bytes / 2**20:.2f} MiB'
    )


def print_estimate(found, chip, flops, tokens):
  """Prints operations, beside those counted by hand, and a time."""
  less = ' (loops: too few)' if found.has_loops else ''
  print(
    f'operations   {found.flops / 1e12:8.3f} T a chip{less}; by hand '
    f'{flops / 1e12:.3f} T'
  )
  estimate = programs.seconds(found, chip, flops)
  parts = ', '.join(
    f'{name} {1e3 * s:.2f}' for name, s in estimate.items() if name != 'step'
  )
  step = estimate['step']
  print(
    f'estimate, not measured: {1e3 * step:.2f} ms ({parts}); '
    f'{tokens / step:,.0f} tokens/s'
  )


def main():
  run, topology = with_mesh(launch.run_config()), _TOPOLOGY.value
  chip = chips.chip_of(topology)
  mesh = chips.mesh_of(topology, run.mesh.data, run.mesh.latent)
  began = time.perf_counter()
  print(f'{topology}, mesh {run.mesh.data} x {run.mesh.latent}')
  if _HARVEST.value:
    where = tuple(map(sites.parse, run.activations.sites)) or (
      sites.Site(run.lm.site, run.lm.layer),
    )
    compiled = ahead.compile_tap(architecture_of(run), where, run, mesh)
    rows, length = run.activations.sequences_per_batch, run.text.context_length
    print(f'harvest of {len(where)} sites, {rows} sequences of {length}')
  else:
    train.check(run)
    d_model = _D_MODEL.value or architecture_of(run).site_dim(run.lm.site)
    compiled = ahead.compile_step(run, d_model, mesh)
    B, M = run.train.batch_size, run.sae.num_latents
    print(f'step of {run.sae.architecture}: B {B}, D {d_model}, M {M}')
  print(f'compiled in {time.perf_counter() - began:.0f} s')
  found = programs.account(compiled)
  print_account(found, chip)
  if not _HARVEST.value:
    print_estimate(found, chip, 10 * B * d_model * M / mesh.size, B)


if __name__ == '__main__':
  launch.run(main)
