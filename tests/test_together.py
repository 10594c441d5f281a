"""Several SAEs in one program end as each would alone."""

from helpers.small_planted import PlantedShards
import jax
import numpy as np
import pytest

from jumprelu_jax import checkpoint
from jumprelu_jax import loop
from jumprelu_jax import sharding
from jumprelu_jax import together
from jumprelu_jax import train
from jumprelu_jax import writer

WIDTHS = (16,)


@pytest.fixture
def runs(make_run):
  """Four SAEs that differ in all that is traced, and in their seeds."""
  run = make_run(
    sae__num_latents=48,
    sae__initial_threshold=0.1,
    objective__bandwidth=0.05,
    train__batch_size=64,
    train__steps=8,
    train__steps_per_log=2,
    train__steps_per_checkpoint=4,
    train__stream_seed=0,
    objective__sparsity_warmup_steps=0,
    optimizer__warmup_steps=2,
  )
  return [
    run.with_values(values)
    for values in (
      {'objective.sparsity_coeff': 0.02},
      {'objective.sparsity_coeff': 0.1, 'objective.bandwidth': 0.1},
      {
        'optimizer.learning_rate': 1e-3,
        'optimizer.threshold_learning_rate': 5e-2,
      },
      {'seed': 3},
    )
  ]


@pytest.fixture
def pays(monkeypatch):
  """Takes one program also on CPUs."""
  monkeypatch.setattr(together, 'pays', lambda mesh: True)


def assert_near(got, want):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert np.max(np.abs(a - b)) <= 1e-6 * max(np.max(np.abs(b)), 1e-30)


@pytest.mark.exact
@pytest.mark.parametrize(
  'shape', [(1, 1, 1), (1, 2, 2), (2, 2, 1)], ids=['one', 'sweep2', 'all']
)
def test_one_program_equals_single_runs(runs, pays, tmp_path, shape):
  data, latent, sweep = shape
  mesh = sharding.make_mesh(data, latent, sweep)
  folders = [tmp_path / f'together_{i}' for i in range(4)]
  states = loop.fit_together(runs, PlantedShards(), mesh, folders)
  alone = sharding.make_mesh(1, 1)
  for i, (run, state) in enumerate(zip(runs, states, strict=True)):
    folder = tmp_path / f'alone_{i}'
    assert_near(state, loop.fit(run, PlantedShards(), alone, folder))
    got, want = map(writer.read_curve, (folders[i], folder))
    assert [r['step'] for r in got] == [2, 4, 6, 8]
    for one, other in zip(got, want, strict=True):
      np.testing.assert_allclose(
        list(one.values()), list(other.values()), rtol=1e-5, atol=1e-6
      )


def test_saes_lie_along_the_sweep_axis(runs):
  mesh = sharding.make_mesh(1, 2, 2)
  program = together.compile_for(runs, WIDTHS, mesh)
  states = [program.init(jax.random.key(run.seed)) for run in runs]
  joined = program.join(states)
  assert joined.sae.W_enc.shape == (4, 16, 48)
  # two SAEs a device, and half of each one's latents
  shard = joined.sae.W_enc.addressable_shards[0].data
  assert shard.shape == (2, 16, 24)
  for i, state in enumerate(states):
    np.testing.assert_array_equal(
      program.member(joined, i).sae.W_enc, state.sae.W_enc
    )


def test_killed_between_two_members_checkpoints(
  runs, pays, tmp_path, monkeypatch
):
  """All go on from the last step that all have saved."""
  mesh = sharding.make_mesh(1, 1)
  folders = [tmp_path / f'killed_{i}' for i in range(4)]
  save, saved = checkpoint.Checkpointer.save, []

  def save_some(self, step, *arguments):
    if len(saved) == 6:  # all of step 4, two of step 8
      raise KeyboardInterrupt
    save(self, step, *arguments)
    saved.append(step)

  with monkeypatch.context() as patched:
    patched.setattr(checkpoint.Checkpointer, 'save', save_some)
    with pytest.raises(KeyboardInterrupt):
      loop.fit_together(runs, PlantedShards(), mesh, folders)
  states = loop.fit_together(runs, PlantedShards(), mesh, folders)
  whole = [tmp_path / f'whole_{i}' for i in range(4)]
  wanted = loop.fit_together(runs, PlantedShards(), mesh, whole)
  for i in range(4):
    for a, b in zip(
      jax.tree.leaves(states[i]), jax.tree.leaves(wanted[i]), strict=True
    ):
      np.testing.assert_array_equal(a, b)
    assert writer.read_curve(folders[i]) == writer.read_curve(whole[i])


def test_who_goes_together(runs, pays):
  mesh = sharding.make_mesh(1, 1)
  other = runs[0].with_values({'sae.num_latents': 64})
  sparse = [run.with_values({'sae.capacity': 8}) for run in runs[:2]]
  all_runs = [runs[0], other, *runs[1:], *sparse]
  found = together.groups(all_runs, WIDTHS, mesh, limit=2**30)
  # sparse steps take turns
  assert found == [[0, 2, 3, 4], [1], [5], [6]]


def test_groups_are_as_large_as_memory_allows(runs, pays):
  mesh = sharding.make_mesh(1, 1)
  state = train.num_bytes(runs[0], WIDTHS)
  activations = 4 * 6 * 64 * 48  # six float32 arrays of [batch, latents]
  three = 3 * (state + activations)
  groups = together.groups
  assert groups(runs, WIDTHS, mesh, limit=three) == [[0, 1, 2], [3]]
  assert groups(runs, WIDTHS, mesh, limit=three - 1) == [[0, 1], [2, 3]]
  assert groups(runs, WIDTHS, mesh, limit=1) == [[0], [1], [2], [3]]


def test_on_one_cpu_they_take_turns(runs):
  mesh = sharding.make_mesh(1, 1)
  assert together.groups(runs, WIDTHS, mesh, limit=2**30) == [
    [0],
    [1],
    [2],
    [3],
  ]
  assert together.pays(sharding.make_mesh(1, 1, 2))


def test_what_is_traced_needs_no_program_of_its_own(runs):
  mesh = sharding.make_mesh(1, 1)
  programs = {train.compile_for(run, WIDTHS, mesh) for run in runs}
  assert len(programs) == 1
  other = runs[0].with_values({'optimizer.beta1': 0.5})
  assert train.compile_for(other, WIDTHS, mesh) not in programs
