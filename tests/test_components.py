"""Components of a training step, each by hand, and the optimizer's parts."""

import dataclasses

from helpers.random_saes import random_of
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from jumprelu_jax import components
from jumprelu_jax import objectives
from jumprelu_jax import optim
from jumprelu_jax import sharding
from jumprelu_jax import sparse
from jumprelu_jax.sae import jumprelu
from jumprelu_jax.sae import maps

NUMBERS = objectives.Coefficients(2.0, 0.5, target_l0=4.0)


@pytest.fixture(scope='module')
def objective(make_run):
  return make_run(
    objective__dead_after_tokens=6,
    objective__target_l0=4.0,
    objective__controller_gain=3.0,
    objective__controller_rate=0.1,
    objective__window_rows=2.5,
  ).objective


def seen(component, active_BM=((1.0,),), *, pre_BM=None, **values):
  """What a component sees of a step in which some latents fired."""
  active_BM = jnp.asarray(active_BM, 'float32')
  pre_BM = active_BM if pre_BM is None else jnp.asarray(pre_BM)
  threshold = values.pop('threshold', jnp.zeros(active_BM.shape[1]))
  coefficients = values.pop('coefficients', NUMBERS)
  same = (active_BM, active_BM, active_BM)
  encoding = maps.Encoding(sparse.EVERYWHERE, pre_BM, *same, threshold)
  numbers = {'squared_error': 1.0, 'penalty': 1.0, 'warmth': 1.0} | values
  return components.Seen(
    component.observe(encoding, coefficients),
    coefficients,
    l0=active_BM.sum(1).mean(),
    **jax.tree.map(jnp.float32, numbers),
  )


def test_tokens_count_from_the_last_time_that_a_latent_fired(objective):
  component = components.tokens_since_fired(objective)
  state = component.init(3)
  np.testing.assert_array_equal(state['tokens_M'], [0, 0, 0])
  expected = [
    # What fires in two rows; tokens after; dead from 6 tokens on.
    ([[1, 0, 0], [1, 0, 0]], [0, 2, 2], [False, False, False]),
    ([[1, 0, 0], [0, 1, 0]], [0, 0, 4], [False, False, False]),
    ([[0, 0, 0], [0, 0, 0]], [2, 2, 6], [False, False, True]),
    ([[1, 0, 0], [0, 0, 0]], [0, 4, 8], [False, False, True]),
    ([[0, 0, 1], [0, 0, 0]], [2, 6, 0], [False, True, False]),
  ]
  for active, tokens, dead in expected:
    state = component.after(state, seen(component, active))
    np.testing.assert_array_equal(state['tokens_M'], tokens)
    got = component.before(state, NUMBERS)
    np.testing.assert_array_equal(got.dead_M, dead)
    assert got.replace(dead_M=None) == NUMBERS


def test_count_of_more_tokens_than_an_int32_holds_stays_dead(objective):
  component = components.tokens_since_fired(objective)
  rows, steps = 2**20, 2**11 + 5

  @jax.jit
  def train(state, fired_M):
    step = seen(component, jnp.broadcast_to(fired_M[None], (rows, 2)))
    return jax.lax.fori_loop(
      0, steps, lambda _, state: component.after(state, step), state
    )

  assert rows * steps > 2**31
  state = train(component.init(2), jnp.array([1.0, 0.0]))
  assert state['tokens_M'].dtype == 'int32'
  np.testing.assert_array_equal(state['tokens_M'], [0, 2**30 + rows])
  dead_M = component.before(state, NUMBERS).dead_M
  np.testing.assert_array_equal(dead_M, [False, True])


def test_tokens_are_counted_over_the_whole_mesh(objective):
  component = components.tokens_since_fired(objective)
  mesh = sharding.make_mesh(2, 4)
  # Latent 0 fires on the first half of the rows alone, latent 5 on the second.
  active_BM = np.zeros((16, 8), 'float32')
  active_BM[3, 0] = active_BM[12, 5] = 1
  layout = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec('data', 'latent')
  )
  state = {'components': {'tokens_since_fired': component.init(8)}}
  state = jax.device_put(state, sharding.of_tree(mesh, state))
  tokens = state['components']['tokens_since_fired']
  assert tokens['tokens_M'].sharding.spec == jax.sharding.PartitionSpec(
    'latent'
  )
  after = jax.jit(
    lambda state, active: component.after(state, seen(component, active))
  )
  placed = jax.device_put(active_BM, layout)
  for step in (1, 2):
    tokens = after(tokens, placed)
    fired = np.isin(np.arange(8), [0, 5])
    want = np.where(fired, 0, 16 * step)
    np.testing.assert_array_equal(tokens['tokens_M'], want)


def test_selection_threshold_averages_from_the_first_cutoff_on(objective):
  component = components.selection_threshold(objective)
  state = component.init(8)
  assert state['threshold'] < 0  # none yet
  want = None
  for cutoff in (0.5, 0.7, 0.0, 0.3):
    state = component.after(
      state, seen(component, threshold=jnp.float32(cutoff))
    )
    want = cutoff if want is None else 0.99 * want + 0.01 * cutoff
    np.testing.assert_allclose(state['threshold'], want, rtol=1e-6)
  assert component.before(state, NUMBERS) == NUMBERS


def test_l0_controller_moves_the_log_of_lambda_by_the_log_of_l0(objective):
  component = components.l0_controller(objective)
  state = component.init(8)
  assert component.before(state, NUMBERS).sparsity_coeff == 2.0
  integral = 0.0
  # L0 of 8, 5, 2, 4 and (clipped to a factor e of the target) 0.5 and 40.
  for l0 in (8, 5, 2, 4, 0.5, 40):
    active_BM = np.zeros((2, 80))
    active_BM[0, : int(2 * l0)] = 1  # the other row has none: a mean counts
    # A penalty in proportion to lambda, and of the error's order.
    penalty = component.before(state, NUMBERS).sparsity_coeff
    state = component.after(state, seen(component, active_BM, penalty=penalty))
    error = np.clip(np.log(l0 / 4.0), -1, 1)
    integral += 0.1 * error
    got = component.before(state, NUMBERS)
    want = 2.0 * np.exp(integral + 3.0 * error)
    np.testing.assert_allclose(got.sparsity_coeff, want, rtol=1e-5)
    assert got.replace(sparsity_coeff=2.0) == NUMBERS


@pytest.mark.parametrize('warmth', [1.0, 0.25])
@pytest.mark.parametrize(
  ('penalty', 'l0', 'bound'),
  [
    (0.01, 8, 0.1),  # too dense, and lambda of no effect: lifted at once
    (1000.0, 2, 10.0),  # too sparse, and lambda huge: lowered at once
    (2.0, 4, None),
    (0.01, 2, None),  # too sparse already: not lifted
    (1000.0, 8, None),  # too dense still: not lowered
  ],
)
def test_l0_controller_keeps_the_penalty_near_the_error(
  objective, penalty, l0, bound, warmth
):
  # Squared error 4, and a penalty at the full lambda: with which integral would
  # it be a tenth of 4, or ten times?
  component = components.l0_controller(objective)
  state = {'integral': jnp.float32(0.3), 'error': jnp.float32(-0.2)}
  step = seen(
    component,
    np.ones((2, l0)),  # the target is 4
    squared_error=4.0,
    penalty=warmth * penalty,
    warmth=warmth,
  )
  after = component.after(state, step)
  np.testing.assert_allclose(after['error'], np.log(l0 / 4), atol=1e-6)
  if bound is None:
    np.testing.assert_allclose(after['integral'], 0.3, rtol=1e-6)
    return
  # lambda was e^(0.3 - 3 * 0.2) and is e^integral now.
  ratio = np.exp(after['integral'] - (0.3 - 0.6))
  np.testing.assert_allclose(ratio * penalty, bound * 4, rtol=1e-5)


@pytest.mark.parametrize('penalty', [1e-4, 1e4])
def test_l0_controller_at_its_target_stays(objective, penalty):
  # The penalty is far from the squared error, but a bound may not move lambda
  # where L0 asks for no change.
  component = components.l0_controller(objective)
  state = {'integral': jnp.float32(0.3), 'error': jnp.float32(0.0)}
  step = seen(component, np.ones((2, 4)), squared_error=4.0, penalty=penalty)
  after = component.after(state, step)
  assert after == {'integral': jnp.float32(0.3), 'error': 0}


def test_l0_controller_lowers_lambda_while_nothing_fires(objective):
  component = components.l0_controller(objective)
  state = component.init(8)
  before = 2.0
  for _ in range(3):
    state = component.after(
      state, seen(component, np.zeros((4, 8)), penalty=0.0)
    )
    after = float(component.before(state, NUMBERS).sparsity_coeff)
    assert after < before
    before = after


def test_adaptive_bandwidth_fills_windows_with_the_same_rows(objective):
  # Five rows, thresholds 1, bandwidth 0.5: of latent 0 none is in the window,
  # of latent 1 one, of latent 2 all five. Wanted are 2.5.
  component = components.adaptive_bandwidth(objective)
  state = component.init(3)
  pre_BM = np.array(
    [
      [0.0, 0.8, 1.2],
      [0.7, 0.7, 1.0],
      [1.3, 0.0, 0.9],
      [9.0, -1.0, 1.1],
      [0.2, 1.26, 0.8],
    ]
  )
  values = {'pre_BM': pre_BM, 'threshold': jnp.ones(3)}
  step = seen(component, np.zeros((5, 3)), **values)
  state = component.after(state, step)
  log_ratio = np.log((np.array([0, 1, 5]) + 0.5) / (2.5 + 0.5))
  moved = -0.01 * np.clip(log_ratio, -1, 1)
  assert moved[0] == 0.01  # clipped
  np.testing.assert_allclose(state['log_factor_M'], moved, rtol=1e-5)
  got = component.before(state, NUMBERS)
  np.testing.assert_allclose(got.bandwidth, 0.5 * np.exp(moved), rtol=1e-6)
  # The next step counts in these windows: 1.3 is in the first one's, if wide.
  wide = NUMBERS.replace(bandwidth=jnp.array([0.62, 0.5, 0.5]))
  step = seen(component, np.zeros((5, 3)), coefficients=wide, **values)
  again = component.after(state, step)
  log_ratio[0] = np.log((2 + 0.5) / (2.5 + 0.5))
  moved -= 0.01 * np.clip(log_ratio, -1, 1)
  np.testing.assert_allclose(again['log_factor_M'], moved, rtol=1e-5)


def test_adaptive_bandwidth_stays_within_a_factor_of_eight(objective):
  component = components.adaptive_bandwidth(objective)
  pre_BM = np.tile([[0.0, 1.0]], (50, 1))
  step = seen(
    component, np.zeros((50, 2)), pre_BM=pre_BM, threshold=jnp.ones(2)
  )

  @jax.jit
  def train(state):
    return jax.lax.fori_loop(
      0, 300, lambda _, state: component.after(state, step), state
    )

  got = component.before(train(component.init(2)), NUMBERS)
  np.testing.assert_allclose(got.bandwidth, [0.5 * 8, 0.5 / 8], rtol=1e-5)


def test_adaptive_bandwidth_counts_over_the_whole_mesh(objective):
  component = components.adaptive_bandwidth(objective)
  mesh = sharding.make_mesh(2, 4)
  layout = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec('data', 'latent')
  )
  pre_BM = np.random.default_rng(0).uniform(0, 2, (16, 8)).astype('float32')

  def after(pre_BM):
    step = seen(
      component, np.zeros((16, 8)), pre_BM=pre_BM, threshold=jnp.ones(8)
    )
    return component.after(component.init(8), step)['log_factor_M']

  got = jax.jit(after)(jax.device_put(pre_BM, layout))
  np.testing.assert_allclose(got, after(pre_BM), rtol=1e-6)
  assert len(set(np.asarray(got))) > 2


# The optimizer's parts that a config may add.


def gradients_of(sae, seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), 'float32'), sae
  )


@pytest.mark.parametrize(
  ('cls', 'averaged'),
  [
    (jumprelu.JumpReLU, 'log_threshold'),
    (jumprelu.RawThresholdJumpReLU, 'threshold'),
  ],
)
def test_only_thresholds_gradients_are_averaged(cls, averaged):
  decay = 0.8
  sae = random_of(cls)
  tx = optim.persistent_threshold_gradient(decay)
  state, mean = tx.init(sae), np.zeros(16)
  for step in range(1, 6):
    gradients = gradients_of(sae, step)
    updates, state = tx.update(gradients, state, sae)
    g = np.asarray(getattr(gradients, averaged), np.float64)
    mean = decay * mean + (1 - decay) * g
    got = getattr(updates, averaged)
    np.testing.assert_allclose(got, mean / (1 - decay**step), rtol=1e-5)
    for name in ('W_enc', 'b_enc', 'W_dec', 'b_dec'):
      np.testing.assert_array_equal(
        getattr(updates, name), getattr(gradients, name)
      )


def test_averages_are_kept_for_thresholds_alone():
  sae = random_of(jumprelu.JumpReLU)
  state = optim.persistent_threshold_gradient(0.8).init(sae)
  sizes = [leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim]
  assert sizes == [16]


def of_norm(norm, tree):
  square = sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree))
  return jax.tree.map(lambda leaf: norm / np.sqrt(square) * leaf, tree)


RATES = optim.Rates(1.0, 1.0)


def optimizer(make_run, **values):
  """The run's whole optimizer for ten steps, without warm-up."""
  values = {'beta1': 0.0, 'beta2': 0.9, 'epsilon': 1e-8} | values
  values = {'warmup_steps': 0, 'decay_fraction': 0.0} | values
  return optim.updates(
    dataclasses.replace(make_run().optimizer, **values), total_steps=10
  )


def test_gradients_of_all_parameters_are_clipped_together(make_run):
  # After a step of norm 100 and one of 1/2, Adam's second moments show what the
  # first one was clipped to: 2.
  sae = random_of(jumprelu.FreeNormJumpReLU)
  first, second = gradients_of(sae, 0), gradients_of(sae, 1)
  first, second = of_norm(100.0, first), of_norm(0.5, second)
  tx = optimizer(make_run, max_gradient_norm=2.0)
  state = tx.init(sae)
  _, state = tx.update(first, state, sae, rates=RATES)
  updates, _ = tx.update(second, state, sae, rates=RATES)
  for name in ('W_enc', 'b_enc', 'W_dec', 'b_dec', 'log_threshold'):
    g1 = np.asarray(getattr(first, name), np.float64) * 2 / 100
    g2 = np.asarray(getattr(second, name), np.float64)
    square = (0.9 * 0.1 * g1**2 + 0.1 * g2**2) / (1 - 0.9**2)
    want = -g2 / (np.sqrt(square) + 1e-8)
    np.testing.assert_allclose(getattr(updates, name), want, rtol=1e-4)


def test_norm_is_clipped_after_the_decoders_projection(make_run):
  # Along unit rows everything is removed: what is left is far from the limit.
  sae = random_of(jumprelu.JumpReLU).constrain()
  along = jax.tree.map(jnp.zeros_like, sae).replace(
    W_dec=1000.0 * sae.W_dec, b_enc=jnp.full(16, 0.01)
  )
  small = along.replace(W_dec=jnp.zeros((16, 6)), b_enc=jnp.full(16, 0.02))
  tx = optimizer(make_run, max_gradient_norm=2.0)
  state = tx.init(sae)
  _, state = tx.update(along, state, sae, rates=RATES)
  updates, _ = tx.update(small, state, sae, rates=RATES)
  square = (0.9 * 0.1 * 0.01**2 + 0.1 * 0.02**2) / (1 - 0.9**2)
  want = -0.02 / np.sqrt(square)
  np.testing.assert_allclose(updates.b_enc, [want] * 16, rtol=1e-3)


def test_no_limit_clips_nothing(make_run):
  sae = random_of(jumprelu.FreeNormJumpReLU)
  first = jax.tree.map(lambda g: 1000 * g, gradients_of(sae, 0))
  second = gradients_of(sae, 1)
  tx = optimizer(make_run)
  state = tx.init(sae)
  _, state = tx.update(first, state, sae, rates=RATES)
  updates, _ = tx.update(second, state, sae, rates=RATES)
  g1, g2 = (np.asarray(g.b_enc, np.float64) for g in (first, second))
  square = (0.9 * 0.1 * g1**2 + 0.1 * g2**2) / (1 - 0.9**2)
  np.testing.assert_allclose(updates.b_enc, -g2 / np.sqrt(square), rtol=1e-4)


def test_threshold_gradients_are_averaged_before_adam(make_run):
  sae = random_of(jumprelu.FreeNormJumpReLU)
  first, second = gradients_of(sae, 0), gradients_of(sae, 1)
  tx = optimizer(make_run, threshold_gradient_decay=0.8)
  state = tx.init(sae)
  _, state = tx.update(first, state, sae, rates=RATES)
  updates, _ = tx.update(second, state, sae, rates=RATES)
  for name in ('log_threshold', 'b_enc'):
    g1, g2 = (np.asarray(getattr(g, name), np.float64) for g in (first, second))
    if name == 'log_threshold':
      g2 = (0.8 * 0.2 * g1 + 0.2 * g2) / (1 - 0.8**2)
    square = (0.9 * 0.1 * g1**2 + 0.1 * g2**2) / (1 - 0.9**2)
    want = -g2 / np.sqrt(square)
    np.testing.assert_allclose(getattr(updates, name), want, rtol=1e-4)


def test_linear_decay_falls_in_equal_steps():
  schedule = optim.learning_rate_schedule(
    2.0, warmup_steps=0, decay_steps=20, total_steps=100, decay='linear'
  )
  got = [schedule(step) for step in (0, 79, 80, 85, 90, 99, 100)]
  want = [2.0, 2.0, 2.0, 1.5, 1.0, 0.1, 0.0]
  np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize('decay', ['linear', 'cosine'])
def test_config_decays_over_its_share_of_the_run(make_run, decay):
  # Ten steps, of which the last half decays: at step 8, 2/5 of it is left.
  tx = optimizer(make_run, decay=decay, decay_fraction=0.5, beta2=0.0)
  sae = random_of(jumprelu.FreeNormJumpReLU)
  state, sizes = tx.init(sae), []
  for _ in range(10):
    # Adam without memory gives the sign.
    updates, state = tx.update(gradients_of(sae, 0), state, sae, rates=RATES)
    sizes.append(float(jnp.mean(jnp.abs(updates.b_enc))))
  left = np.array([1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
  want = left if decay == 'linear' else 0.5 * (1 - np.cos(np.pi * left))
  np.testing.assert_allclose(sizes, want, rtol=1e-4)
