"""The planner: programs read by hand, and the real TPU compiler's account."""

import importlib.util

import pytest

from configs import defaults
from experiments.plan import ahead
from experiments.plan import chips
from experiments.plan import programs
from jumprelu_jax import config as config_lib
from jumprelu_jax import errors

HLO = """
ENTRY %main {
  %a = f32[4096,3584]{1,0:T(8,128)} all-reduce(%x), replica_groups={{0,1}}
  %b = (bf16[8,4]{1,0}, bf16[16,4]{1,0}) all-gather-start(%y), dimensions={0}
  %c = bf16[16,4]{1,0} all-gather-done(%b)
  %d = (f32[10]{0}, /*index=5*/s32[]) all-reduce(%p, %q), to_apply=%add
  %e = f32[64]{0} fusion(%all-reduce.1), kind=kLoop
}
"""


def test_collectives_are_counted_by_hand():
  found = {(c.kind, c.dtype): c for c in programs.collectives(HLO)}
  f32 = found['all-reduce', 'f32']
  assert (f32.count, f32.num_bytes) == (2, 4 * (4096 * 3584 + 10))
  s32 = found['all-reduce', 's32']
  assert (s32.count, s32.num_bytes) == (1, 4)
  bf16 = found['all-gather', 'bf16']
  assert (bf16.count, bf16.num_bytes) == (1, 2 * 16 * 4)
  assert len(found) == 3


def test_estimate_by_hand():
  chip = chips.Chip(
    flops=1e12, memory_bytes=1e9, memory_rate=1e11, link_rate=1e10
  )
  found = programs.Account(
    argument_bytes=0,
    output_bytes=0,
    temporary_bytes=0,
    peak_bytes=0,
    flops=0.0,
    memory_traffic=3e9,
    has_loops=False,
    collectives=(
      programs.Collective('all-reduce', 'f32', 1, 10**8),
      programs.Collective('all-gather', 'f32', 1, 10**8),
    ),
  )
  assert programs.seconds(found, chip, 2e10) == pytest.approx(
    {'compute': 0.02, 'memory': 0.03, 'links': 0.03, 'step': 0.06}
  )


@pytest.mark.parametrize('topology', ['v9:2x2', 'v5e'])
def test_unknown_topologies_are_named(topology):
  with pytest.raises(errors.InputError, match=f'--topology={topology}'):
    chips.mesh_of(topology, 1, 8)


def gemma_scope(batch_size, num_latents, data, latent):
  """The paper's SAE, bfloat16 products, over a mesh."""
  run = config_lib.RunConfig.from_config_dict(defaults.GEMMA_SCOPE)
  return run.with_values(
    {
      'train.batch_size': batch_size,
      'sae.num_latents': num_latents,
      'sae.compute_dtype': 'bfloat16',
      'mesh.data': data,
      'mesh.latent': latent,
    }
  )


def account_of(topology, run, d_model=3584):
  mesh = chips.mesh_of(topology, run.mesh.data, run.mesh.latent)
  return programs.account(ahead.compile_step(run, d_model, mesh))


tpu = pytest.mark.tpu


@tpu
def test_libtpu_is_there():
  assert importlib.util.find_spec('libtpu'), "pip install -e '.[tpu]'"


@tpu
def test_latents_over_eight_chips():
  """Two all-reduces, both float32, of [B, D] and of scalars; nothing else."""
  found = account_of('v5e:2x4', gemma_scope(4096, 2**17, 1, 8))
  assert found.peak_bytes <= 1.7 * chips.GIB
  five_products = 10 * 4096 * 3584 * 2**17 / 8
  assert not found.has_loops
  assert found.flops == pytest.approx(five_products, rel=0.01)
  (only,) = found.collectives
  assert (only.kind, only.dtype) == ('all-reduce', 'f32')
  assert only.count <= 2
  assert only.num_bytes <= 57 * 2**20


@tpu
def test_gradients_are_added_up_in_float32():
  found = account_of('v5e:2x4', gemma_scope(4096, 2**17, 2, 4))
  dtypes = {c.dtype for c in found.collectives if c.num_bytes > 2**20}
  assert dtypes == {'f32'}


@tpu
@pytest.mark.parametrize('topology', ['v5e:2x2', 'v5p:2x2x1', 'v6e:2x2'])
def test_the_decoders_kernel_compiles(topology):
  run = gemma_scope(1024, 2**14, 1, 4)
  run = run.with_values({'optimizer.is_fused': True})
  mesh = chips.mesh_of(topology, 1, 4)
  compiled = ahead.compile_step(run, 3584, mesh)
  assert 'update_decoder' in compiled.as_text()


@tpu
@pytest.mark.parametrize(
  ('topology', 'batch_size', 'num_latents', 'mesh'),
  [('v5e:16x16', 65_536, 2**17, (16, 16)), ('v5p:4x4x4', 4096, 2**20, (1, 64))],
  ids=['pod', 'million'],
)
def test_large_runs_fit(topology, batch_size, num_latents, mesh):
  found = account_of(topology, gemma_scope(batch_size, num_latents, *mesh))
  assert found.peak_bytes < chips.chip_of(topology).memory_bytes
  # One reconstruction and, over 'data', the gradients of a chip's own latents.
  B, M = batch_size // mesh[0], num_latents // mesh[1]
  gradients = 2 * M * 3584 if mesh[0] > 1 else 0
  sent = sum(c.num_bytes for c in found.collectives)
  assert sent == pytest.approx(4 * (B * 3584 + gradients), rel=0.01)
