"""What every objective promises: it learns, on any mesh, and is released whole.

A new objective joins by a row in CASES: the architecture that it is meant for
and numbers with which it recovers a planted dictionary.
"""

import jax
from jax import numpy as jnp
import numpy as np
import pytest
from test_train import PlantedShards

from jumprelu_jax import objectives
from jumprelu_jax import sharding
from jumprelu_jax import train

FREE = 'jumprelu_free_norm'
#: objective → (architecture, values of config.objective).
CASES = {
  'l0': ('jumprelu', {'sparsity_coeff': 0.05}),
  'target_l0': ('jumprelu', {'sparsity_coeff': 0.05, 'target_l0': 2.0}),
  'target_mean_l0': ('jumprelu', {'sparsity_coeff': 0.3, 'target_l0': 2.0}),
  'quadratic_frequency': (
    'jumprelu',
    {'sparsity_coeff': 0.05, 'frequency_scale': 0.5},
  ),
  'tanh': (
    FREE,
    {
      'sparsity_coeff': 0.1,
      'tanh_scale': 2.0,
      'pre_activation_coeff': 1e-3,
      'estimator': 'threshold_and_encoder',
    },
  ),
  'l1': ('jumprelu', {'sparsity_coeff': 0.1}),
  'ri_l1': (FREE, {'sparsity_coeff': 0.1}),
}


@pytest.fixture
def make_case(make_run):
  def make(name, **changes):
    architecture, values = CASES[name]
    values = {f'objective__{key}': value for key, value in values.items()}
    return make_run(
      **{
        'sae__architecture': architecture,
        'sae__num_latents': 64,
        'sae__initial_threshold': 0.05,
        'objective__name': name,
        'objective__bandwidth': 0.05,
        'objective__sparsity_warmup_steps': 100,
        'train__batch_size': 512,
        'train__steps': 1500,
        'train__steps_per_log': 100,
        'train__steps_per_checkpoint': 500,
        'activations__prefetch_batches': 0,
      }
      | values
      | changes
    )

  return make


def test_every_objective_has_a_case():
  assert CASES.keys() == objectives.OBJECTIVES.keys()


@pytest.mark.parametrize('name', CASES)
def test_planted_dictionary_is_recovered(make_case, tmp_path, name):
  shards = PlantedShards(8192, 100, d_model=32, latents=48)
  run, mesh = make_case(name), sharding.make_mesh(1, 1)
  sae = train.fit(run, shards, mesh, tmp_path).fold(1.0)
  W_dec = np.asarray(sae.W_dec, np.float64)
  np.testing.assert_allclose(np.linalg.norm(W_dec, axis=1), 1, rtol=1e-5)
  cosines = shards.directions_MD @ W_dec.T
  assert cosines.max(axis=1).mean() > 0.9


def few_steps(run, mesh_shape, steps=4):
  mesh = sharding.make_mesh(*mesh_shape)
  init, step_fn = train.compile_for(run, 16, mesh)
  state, shards = init(jax.random.key(0)), PlantedShards(64)
  coefficients = jax.tree.map(jnp.float32, train.coefficients_of(run))
  losses = []
  for step in range(steps):
    rows_BD = jax.device_put(shards.open(step), sharding.of_batch(mesh))
    state, metrics = step_fn(state, rows_BD, 1.0, coefficients)
    losses.append(float(metrics['loss']))
  return losses, state.sae, step_fn


@pytest.mark.parametrize('name', CASES)
def test_meshes_agree_and_compile_once(make_case, name):
  run = make_case(
    name,
    train__batch_size=64,
    train__steps=8,
    train__steps_per_log=2,
    train__steps_per_checkpoint=4,
    objective__sparsity_warmup_steps=0,
    optimizer__warmup_steps=2,
  )
  want_losses, want, step_fn = few_steps(run, (1, 1))
  assert step_fn._cache_size() == 1
  losses, got, _ = few_steps(run, (2, 4))
  np.testing.assert_allclose(losses, want_losses, rtol=1e-5)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize('state', ['dead', 'all_active'])
@pytest.mark.parametrize('name', CASES)
def test_gradients_are_finite_at_the_ends(make_case, name, state):
  run = make_case(name)
  sae = train.init_state(run, 16, jax.random.key(0)).sae
  bias = -100.0 if state == 'dead' else 100.0
  sae = sae.replace(b_enc=jnp.full_like(sae.b_enc, bias))
  x_BD = jnp.asarray(PlantedShards(64).open(0))

  def loss_fn(sae):
    objective = objectives.OBJECTIVES[name]
    return objective(sae, x_BD, train.coefficients_of(run))[0]

  loss, gradients = jax.value_and_grad(loss_fn)(sae)
  assert np.isfinite(loss)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize('name', CASES)
def test_bfloat16_compute_is_close(make_case, name):
  run = make_case(name)
  x_BD = jnp.asarray(PlantedShards(64).open(0))
  losses = []
  for dtype in ('float32', 'bfloat16'):
    sae = train.init_state(run, 16, jax.random.key(0)).sae
    sae = sae.replace(compute_dtype=dtype)
    objective = objectives.OBJECTIVES[name]
    losses.append(float(objective(sae, x_BD, train.coefficients_of(run))[0]))
  np.testing.assert_allclose(losses[1], losses[0], rtol=1e-2)
