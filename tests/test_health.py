"""Numbers that are not finite: found at the step, named, left out."""

import contextlib
import functools

from helpers.small_planted import PlantedShards
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from jumprelu_jax import checkpoint
from jumprelu_jax import curve
from jumprelu_jax import errors
from jumprelu_jax import health
from jumprelu_jax import loop
from jumprelu_jax import members
from jumprelu_jax import sharding
from jumprelu_jax import together
from jumprelu_jax import train
from jumprelu_jax import writer

WIDTHS = (16,)


@pytest.fixture(scope='module')
def run(planted_run):
  return planted_run


@functools.cache
def batch(step):
  return PlantedShards().open(step % 8)


def begin(run, mesh=None, widths=WIDTHS):
  """Returns (a function of (state, rows) that takes a step, a first state)."""
  mesh = mesh or sharding.make_mesh(1, 1)
  init, step = train.compile_for(run, widths, mesh)
  numbers = train.numbers_of(run)

  def take(state, rows_BD):
    rows_BD = jax.device_put(rows_BD, sharding.of_batch(mesh))
    return step(state, rows_BD, 1.0, numbers)

  return take, init(jax.random.key(0))


def poisoned(array, value=np.nan):
  """Returns a copy with one number replaced, far from the first."""
  flat = np.array(array).ravel()
  flat[len(flat) // 2 + 1 if flat.size > 1 else 0] = value
  copy = flat.reshape(np.shape(array))
  return jax.device_put(copy, array.sharding)


def arrays(*trees):
  return [np.array(leaf) for leaf in jax.tree.leaves(trees)]


def assert_same(got, want):
  for a, b in zip(got, want, strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
  'values',
  [
    {},
    {'sae.capacity': 8},
    {
      'sae.architecture': 'topk',
      'objective.name': 'aux_k',
      'objective.aux_k': 4,
      'sae.k': 3,
    },
    {'sae.architecture': 'gated', 'objective.name': 'gated'},
    {'optimizer.is_fused': True},
  ],
  ids=['dense', 'sparse', 'topk', 'gated', 'fused'],
)
def test_a_bad_batch_changes_nothing_but_counts(run, values, value):
  take, state = begin(run.with_values(values))
  state, _ = take(state, batch(0))
  before = arrays(state.sae, state.opt_state, state.components)
  rows_BD = batch(1).copy()
  rows_BD[37, 3] = value
  state, metrics = take(state, rows_BD)
  assert int(metrics['fault']) == health.BATCH
  assert int(metrics['bad_batches']) == 1
  assert (int(state.step), int(state.health.first_bad_step)) == (2, 1)
  assert_same(arrays(state.sae, state.opt_state, state.components), before)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
  ('values', 'name'),
  [
    *[({}, n) for n in ('W_enc', 'W_dec', 'b_enc', 'b_dec', 'log_threshold')],
    ({'sae.capacity': 8}, 'W_enc'),
    ({'sae.capacity': 8}, 'W_dec'),
    ({'sae.architecture': 'gated', 'objective.name': 'gated'}, 'W_enc'),
    ({'sae.architecture': 'gated', 'objective.name': 'gated'}, 'r_mag'),
    ({'sae.architecture': 'jumprelu_free_norm'}, 'W_dec'),
    ({'optimizer.is_fused': True}, 'W_dec'),
    ({'sae.use_pre_encoder_bias': False}, 'W_enc'),
  ],
)
def test_a_bad_weight_is_found_at_that_step(run, values, name, value):
  take, state = begin(run.with_values(values))
  state, _ = take(state, batch(0))
  weight = poisoned(getattr(state.sae, name), value)
  state = state.replace(sae=state.sae.replace(**{name: weight}))
  before = arrays(state.sae, state.opt_state)
  for step in (1, 2, 3):
    state, metrics = take(state, batch(step))
    assert int(metrics['fault']) in (health.WEIGHTS, health.LOSS)
  assert int(state.health.first_bad_step) == 1
  assert int(state.health.bad_count) == 1  # and stopped
  assert_same(arrays(state.sae, state.opt_state), before)


@pytest.mark.parametrize('mesh_shape', [(2, 4), (8, 1), (1, 8)], ids=str)
def test_a_bad_weight_is_found_on_a_mesh(run, mesh_shape):
  take, state = begin(run, sharding.make_mesh(*mesh_shape))
  state, metrics = take(state, batch(0))
  assert int(metrics['fault']) == 0
  weight = poisoned(state.sae.W_enc)
  state = state.replace(sae=state.sae.replace(W_enc=weight))
  _, metrics = take(state, batch(1))
  assert int(metrics['fault']) == health.WEIGHTS


@pytest.mark.parametrize(
  'name', ['W_enc', 'W_dec', 'b_enc', 'b_dec', 'log_threshold']
)
def test_a_bad_moment_is_found_in_the_weight_that_it_made(run, name):
  """The step whose update it spoilt is the last one that changes anything."""
  take, state = begin(run)
  state, _ = take(state, batch(0))
  _, rms, *_ = state.opt_state
  moments = rms.nu.replace(**{name: poisoned(getattr(rms.nu, name))})
  opt_state = tuple(
    part._replace(nu=moments) if part is rms else part
    for part in state.opt_state
  )
  state = state.replace(opt_state=opt_state)
  state, metrics = take(state, batch(1))
  spoilt = arrays(state.sae, state.opt_state)
  for step in (2, 3, 4):
    state, metrics = take(state, batch(step))
    assert int(metrics['fault']) > 0
  assert int(state.health.first_bad_step) == 2
  assert_same(arrays(state.sae, state.opt_state), spoilt)


def test_a_transcoders_bad_input_is_found_though_its_loss_is_finite(make_run):
  run = make_run(
    sae__architecture='jumprelu_transcoder',
    sae__num_latents=48,
    sae__use_pre_encoder_bias=False,
    lm__target_site='mlp_out',
    train__batch_size=64,
  )
  take, state = begin(run, widths=(16, 16))
  rows_BD = np.concatenate([batch(0), batch(1)], axis=1)
  rows_BD[5, 2] = np.nan
  before = arrays(state.sae)
  state, metrics = take(state, rows_BD)
  assert np.isfinite(float(metrics['loss']))
  assert int(metrics['fault']) == health.BATCH
  assert_same(arrays(state.sae), before)


def test_one_of_a_program_stops_alone(run):
  mesh = sharding.make_mesh(1, 1)
  runs = [run.with_values({'objective.sparsity_coeff': c}) for c in (0.1, 0.2)]
  numbers = jax.device_put(together.numbers_of(runs))

  def joined(spoil):
    program = together.compile_for(runs, WIDTHS, mesh)
    states = [program.init(jax.random.key(0)) for _ in runs]
    if spoil:
      bad = states[1].sae.replace(W_dec=poisoned(states[1].sae.W_dec))
      states[1] = states[1].replace(sae=bad)
    state = program.join(states)
    for step in range(3):
      state, metrics = program.step(state, batch(step), 1.0, numbers)
    return [arrays(program.member(state, i)) for i in range(2)], metrics

  (first, _), metrics = joined(spoil=True)
  np.testing.assert_array_equal(np.asarray(metrics['fault']) > 0, [False, True])
  (wanted, _), _ = joined(spoil=False)
  assert_same(first, wanted)


def test_nothing_of_a_weights_size_is_read_for_it(run, monkeypatch):
  """Bytes that the compiled step reads and writes, with it and without."""
  big = run.with_values({'sae.num_latents': 2048, 'train.batch_size': 32})
  widths, mesh = (64,), sharding.make_mesh(1, 1)

  def traffic():
    state = jax.eval_shape(
      functools.partial(train.init_state, big, widths), jax.random.key(0)
    )
    step = jax.jit(train.step_of(big, widths, mesh), donate_argnums=0)
    rows = jax.ShapeDtypeStruct((32, 64), 'float32')
    numbers = train.numbers_of(big)
    compiled = step.lower(state, rows, np.float32(1), numbers).compile()
    return compiled.cost_analysis()['bytes accessed']

  checked = traffic()
  monkeypatch.setattr(health, 'choose', lambda goes_on, new, old: new)
  monkeypatch.setattr(health, 'fault', lambda *_: jnp.int32(0))
  plain = traffic()
  one_weight = 4 * 64 * 2048
  assert checked - plain < one_weight / 2, (checked, plain, one_weight)


class OneBadBatch(PlantedShards):
  """A shard is a batch; the one of some step holds one NaN."""

  bad_step, seed, rows_per_step = 2, 0, 64

  def __init__(self, bad_step):
    super().__init__()
    order = np.random.default_rng([0, 0, 0]).permutation(8)
    self.bad_shard = int(order[bad_step])

  def open(self, index):
    rows_BD = super().open(index).copy()
    if index == self.bad_shard:
      rows_BD[11, 4] = np.nan
    return rows_BD


def test_a_bad_batch_ends_the_run_and_is_named(run, tmp_path):
  shards = OneBadBatch(bad_step=5)
  with pytest.raises(errors.NotFiniteError) as caught:
    loop.fit(run, shards, sharding.make_mesh(1, 1), tmp_path / 'sae_7')
  said = str(caught.value)
  assert 'sae_7, step 6: the batch holds NaN or infinity' in said
  assert f'(epoch 0, shard {shards.bad_shard}, rows 0-63)' in said
  assert f'Last good checkpoint: of step 4, in {tmp_path / "sae_7"}' in said
  assert 'experiments.harvest --verify' in said
  assert 'config.train.max_bad_batches=0' in said
  assert isinstance(caught.value, errors.InputError)
  saves = checkpoint.Checkpointer(tmp_path / 'sae_7' / 'checkpoints')
  assert saves.steps() == [4]
  saves.close()


def test_a_batch_that_may_be_left_out_is(run, tmp_path, capsys):
  """The rest is trained as if its update had not been."""
  run = run.with_values({'train.max_bad_batches': 1})
  shards = OneBadBatch(bad_step=4)
  mesh = sharding.make_mesh(1, 1)
  got = loop.fit(run, shards, mesh, tmp_path)
  take, state = begin(run)
  order = np.random.default_rng([0, 0, 0]).permutation(8)
  losses = []
  for step, shard in enumerate(order):
    if step == 4:
      state = state.replace(step=state.step + 1)
      losses.append(np.nan)
      continue
    state, metrics = take(state, PlantedShards().open(int(shard)))
    losses.append(float(metrics['loss']))
  for name in ('sae', 'opt_state', 'components', 'step'):
    assert_same(arrays(getattr(got, name)), arrays(getattr(state, name)))
  assert (int(got.health.first_bad_step), int(got.health.bad_count)) == (4, 1)
  said = capsys.readouterr().err
  assert said.count('left out, 1 of at most 1') == 1
  named = f'step 5: the batch holds NaN or infinity (epoch 0, shard {order[4]}'
  assert named in said
  records = writer.read_curve(tmp_path)
  assert [r['bad_batches'] for r in records] == [0, 0, 1, 1]
  wanted = np.nanmean(np.reshape(losses, (4, 2)), axis=1)
  np.testing.assert_allclose([r['loss'] for r in records], wanted, rtol=1e-6)


def test_one_more_than_may_be_left_out_ends_the_run(run, tmp_path):
  run = run.with_values({'train.max_bad_batches': 2})

  class AllBad(PlantedShards):
    def open(self, index):
      return super().open(index) * np.nan

  with pytest.raises(errors.NotFiniteError, match='step 3: .* none yet'):
    loop.fit(run, AllBad(), sharding.make_mesh(1, 1), tmp_path)


@pytest.mark.parametrize('where', ['sae', 'opt_state'])
def test_what_spoils_the_state_is_named_and_never_saved(
  run, tmp_path, monkeypatch, where
):
  take_step = members.Group.take_step

  def spoiling(self, step, rows_BD, scale):
    if step == 5:
      tree = getattr(self._state, where)
      spoilt = jax.tree.map(
        lambda leaf: poisoned(leaf) if leaf.ndim == 2 else leaf, tree
      )
      self._state = self._state.replace(**{where: spoilt})
    take_step(self, step, rows_BD, scale)

  monkeypatch.setattr(members.Group, 'take_step', spoiling)
  monkeypatch.setattr(
    loop.jax, 'transfer_guard', lambda _: contextlib.nullcontext()
  )
  named = {'sae': 'step 6: ', 'opt_state': 'step 7: '}[where]
  with pytest.raises(errors.NotFiniteError, match=named) as caught:
    loop.fit(run, PlantedShards(), sharding.make_mesh(1, 1), tmp_path)
  assert 'Last good checkpoint: of step 4' in str(caught.value)


def test_a_moment_spoilt_by_the_last_step_is_not_saved(run, tmp_path):
  take, state = begin(run)
  state, _ = take(state, batch(0))

  def spoil(leaf):
    return poisoned(leaf) if leaf.ndim == 2 else leaf

  bad = state.replace(opt_state=jax.tree.map(spoil, state.opt_state))
  member = members.Member(run, tmp_path)
  shards = PlantedShards()
  group = members.Group([member], shards, sharding.make_mesh(1, 1), str)
  group._state = bad
  with pytest.raises(errors.NotFiniteError, match='when it was to be saved'):
    group.save(4)
  assert member.checkpointer.steps() == []


def test_means_are_over_the_steps_that_were_taken():
  steps = [
    {'l0': np.array(l0), 'fault': np.array(fault), 'bad_batches': [0, 1]}
    for l0, fault in (
      ([1.0, 5.0], [0.0, 3.0]),
      ([3.0, 7.0], [0.0, 0.0]),
      ([5.0, 9.0], [0.0, 0.0]),
    )
  ]
  assert curve.means(steps) == [
    {'l0': 3.0, 'bad_batches': 0},
    {'l0': 8.0, 'bad_batches': 1},
  ]
  left_out = {'l0': 2.0, 'fault': 1.0, 'bad_batches': 4.0}
  (only,) = curve.means([left_out])
  assert np.isnan(only['l0'])
  assert only['bad_batches'] == 4


def test_steps_survive_json_bit_for_bit():
  rng = np.random.default_rng(0)
  steps = [{'l0': rng.random(2, np.float32)} for _ in range(3)]
  again = [
    curve.stacked(pair)
    for pair in zip(*[curve.of_one(steps, i) for i in range(2)], strict=True)
  ]
  for one, other in zip(steps, again, strict=True):
    assert one['l0'].tobytes() == other['l0'].tobytes()
