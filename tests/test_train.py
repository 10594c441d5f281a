"""The training step and loop: meshes, resume, recovery of a dictionary."""

import time
import types

from helpers.small_planted import PlantedShards
import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from jumprelu_jax import checkpoint
from jumprelu_jax import loop
from jumprelu_jax import seals
from jumprelu_jax import sharding
from jumprelu_jax import train
from jumprelu_jax import writer

WIDTHS = (16,)


class CountsRows(PlantedShards):
  """Counts the shards opened; a shard is a batch here."""

  opened = 0

  def open(self, index):
    self.opened += 1
    return super().open(index)


def run_steps(run, mesh_shape, steps):
  """Returns (losses, final state) of some steps on a mesh."""
  mesh = sharding.make_mesh(*mesh_shape)
  init, step_fn = train.compile_for(run, WIDTHS, mesh)
  state = init(jax.random.key(0))
  shards = PlantedShards(run.train.batch_size)
  numbers = train.numbers_of(run)
  losses = []
  for step in range(steps):
    x_BD = jax.device_put(shards.open(step), sharding.of_batch(mesh))
    state, metrics = step_fn(state, x_BD, 1.0, numbers)
    losses.append(float(metrics['loss']))
  return losses, state


# Of two axes: test_contract, for every architecture.
@pytest.mark.parametrize('mesh_shape', [(8, 1), (1, 8)], ids=str)
def test_meshes_of_one_axis_agree(planted_run, mesh_shape):
  expected_losses, expected = run_steps(planted_run, (1, 1), 8)
  losses, state = run_steps(planted_run, mesh_shape, 8)
  np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
  for got, want in zip(
    jax.tree.leaves(state.sae), jax.tree.leaves(expected.sae), strict=True
  ):
    largest = np.abs(want).max()
    np.testing.assert_allclose(got, want, atol=1e-5 * largest)


def test_state_is_born_and_kept_sharded(planted_run):
  _, state = run_steps(planted_run, (2, 4), 2)
  assert state.sae.W_enc.sharding.spec == P(None, 'latent')
  assert state.sae.W_enc.addressable_shards[0].data.shape == (16, 12)
  moments = [
    leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim == 2
  ]
  assert [m.addressable_shards[0].data.size for m in moments] == [16 * 12] * 2


def test_a_batch_from_the_host_is_laid_out_over_the_mesh(planted_run):
  mesh = sharding.make_mesh(2, 4)
  init, step_fn = train.compile_for(planted_run, WIDTHS, mesh)
  state = init(jax.random.key(0))
  numbers = train.numbers_of(planted_run)
  rows_BD = PlantedShards(64).open(0)
  compiled = step_fn.lower(state, rows_BD, 1.0, numbers).compile()
  _, rows, *_ = compiled.input_shardings[0]
  assert rows.spec == P('data', None)


def test_a_sweep_compiles_once(planted_run):
  train._compile.cache_clear()
  for coeff in (0.01, 0.02, 0.03):
    run = planted_run.with_values({'objective.sparsity_coeff': coeff})
    run_steps(run, (1, 1), 3)
  _, step_fn = train.compile_for(planted_run, WIDTHS, sharding.make_mesh(1, 1))
  assert step_fn._cache_size() == 1


def test_state_is_donated(planted_run):
  mesh = sharding.make_mesh(1, 1)
  init, step_fn = train.compile_for(planted_run, WIDTHS, mesh)
  state = init(jax.random.key(0))
  step_fn(
    state,
    PlantedShards(64).open(0),
    1.0,
    train.numbers_of(planted_run),
  )
  assert state.sae.W_enc.is_deleted()


def test_optimizer_over_data_too_takes_the_same_steps(planted_run):
  divided = planted_run.with_values({'mesh.divides_optimizer': True})
  losses, state = run_steps(divided, (2, 4), 5)
  want_losses, want = run_steps(planted_run, (2, 4), 5)
  moments, whole = (s.opt_state[1].nu.W_enc for s in (state, want))
  shards = moments.addressable_shards[0], whole.addressable_shards[0]
  assert [s.data.shape for s in shards] == [(8, 12), (16, 12)]
  np.testing.assert_allclose(losses, want_losses, rtol=1e-6)
  for got, expected in zip(
    jax.tree.leaves(state), jax.tree.leaves(want), strict=True
  ):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_decoder_rows_keep_unit_norm(planted_run):
  _, state = run_steps(planted_run, (1, 1), 5)
  norms = np.linalg.norm(state.sae.W_dec, axis=1)
  np.testing.assert_allclose(norms, np.ones(48), rtol=1e-6)
  assert int(state.step) == 5


def test_sparsity_coefficient_warms_up_linearly(make_run):
  run = make_run(
    objective__sparsity_coeff=2.0,
    objective__sparsity_warmup_steps=4,
    train__batch_size=8,
    train__steps=8,
  )
  mesh = sharding.make_mesh(1, 1)
  init, step_fn = train.compile_for(run, WIDTHS, mesh)
  state, seen = init(jax.random.key(0)), []
  for _ in range(6):
    state, metrics = step_fn(
      state, jnp.ones((8, *WIDTHS)), 1.0, train.numbers_of(run)
    )
    seen.append(float(metrics['sparsity_coeff']))
  np.testing.assert_allclose(seen, [0, 0.5, 1, 1.5, 2, 2])


def test_a_checkpoint_written_late_has_the_curve_of_its_step(
  planted_run, tmp_path, monkeypatch
):
  def write_late(*arguments):
    time.sleep(0.5)  # steps 6 and 8 are in the curve by then
    seals.write(*arguments)

  late = types.SimpleNamespace(**vars(seals) | {'write': write_late})
  monkeypatch.setattr(checkpoint, 'seals', late)
  loop.fit(planted_run, PlantedShards(), sharding.make_mesh(1, 1), tmp_path)
  for step in (4, 8):
    about = seals.read(tmp_path / 'checkpoints' / str(step))
    steps = [record['step'] for record in about['notes']['records']]
    assert steps == list(range(2, step + 1, 2))


def test_checkpoint_restores_on_another_mesh(planted_run, tmp_path):
  mesh = sharding.make_mesh(2, 4)
  state = loop.fit(planted_run, PlantedShards(), mesh, tmp_path)
  other = sharding.make_mesh(1, 1)
  again = loop.fit(planted_run, PlantedShards(), other, tmp_path)
  for got, want in zip(
    jax.tree.leaves(again), jax.tree.leaves(state), strict=True
  ):
    np.testing.assert_array_equal(got, want)
    assert len(got.sharding.device_set) == 1


@pytest.fixture
def unlike_runs(planted_run):
  """Runs that share nothing but the stream."""
  return [
    planted_run.with_values(values)
    for values in (
      {},
      {'objective.sparsity_coeff': 0.1, 'optimizer.learning_rate': 1e-3},
      {
        'sae.architecture': 'topk',
        'objective.name': 'aux_k',
        'objective.aux_k': 4,
        'sae.k': 3,
      },
    )
  ]


def assert_same_states(got, want):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.exact
def test_together_each_ends_as_it_would_alone(unlike_runs, tmp_path):
  mesh = sharding.make_mesh(1, 1)
  shards = CountsRows()
  folders = [tmp_path / f'together_{i}' for i in range(3)]
  states = loop.fit_together(unlike_runs, shards, mesh, folders)
  assert shards.opened == 8  # once a batch, not once an SAE
  for i, (run, state) in enumerate(zip(unlike_runs, states, strict=True)):
    alone = tmp_path / f'alone_{i}'
    assert_same_states(state, loop.fit(run, PlantedShards(), mesh, alone))
    assert writer.read_curve(folders[i]) == writer.read_curve(alone)


def test_killed_together_each_goes_on_from_its_own(
  unlike_runs, tmp_path, monkeypatch
):
  """Killed after some have saved step 4, and before the others."""
  mesh = sharding.make_mesh(1, 1)
  folders = [tmp_path / f'killed_{i}' for i in range(3)]
  save, saved = checkpoint.Checkpointer.save, []

  def save_one(self, step, *arguments):
    if saved:
      raise KeyboardInterrupt
    save(self, step, *arguments)
    saved.append(step)

  with monkeypatch.context() as patched:
    patched.setattr(checkpoint.Checkpointer, 'save', save_one)
    with pytest.raises(KeyboardInterrupt):
      loop.fit_together(unlike_runs, PlantedShards(), mesh, folders)
  assert saved == [4]
  states = loop.fit_together(unlike_runs, PlantedShards(), mesh, folders)
  for i, (run, state) in enumerate(zip(unlike_runs, states, strict=True)):
    alone = loop.fit(run, PlantedShards(), mesh, tmp_path / f'alone_{i}')
    assert_same_states(state, alone)
    assert [r['step'] for r in writer.read_curve(folders[i])] == [2, 4, 6, 8]


def test_only_one_stream_is_shared(planted_run, tmp_path):
  other = planted_run.with_values({'seed': 1})
  with pytest.raises(ValueError, match='one stream'):
    loop.fit_together(
      [planted_run, other],
      PlantedShards(),
      sharding.make_mesh(1, 1),
      [tmp_path / 'a', tmp_path / 'b'],
    )


def test_loss_that_is_not_finite_stops_the_run(planted_run, tmp_path):
  class Broken(PlantedShards):
    def open(self, index):
      return super().open(index) * np.nan

  with pytest.raises(FloatingPointError, match='step 1: the batch holds'):
    loop.fit(planted_run, Broken(), sharding.make_mesh(1, 1), tmp_path)


@pytest.mark.parametrize(
  ('last_l0s', 'expected'),
  [((100, 104), True), ((100, 106), False), ((100, 94), False)],
)
def test_l0_is_settled_by_hand(last_l0s, expected):
  early, late = last_l0s
  curve = [
    {'step': step, 'l0': 500.0 if step < 780 else early if step <= 800 else 1.0}
    for step in range(10, 990, 10)
  ] + [{'step': 990, 'l0': late}, {'step': 1000, 'l0': late}]
  assert loop.l0_is_settled(curve, 1000) is expected


def test_short_or_missing_curves_are_not_settled():
  assert not loop.l0_is_settled([], 100)
  assert not loop.l0_is_settled([{'step': 100, 'l0': 0.0}], 100)


@pytest.mark.parametrize(
  ('l0', 'expected'), [(0.0, False), (0.4, False), (0.6, True)]
)
def test_an_l0_of_hardly_a_latent_is_not_settled(l0, expected):
  curve = [{'step': step, 'l0': l0} for step in range(10, 1001, 10)]
  assert loop.l0_is_settled(curve, 1000) is expected
