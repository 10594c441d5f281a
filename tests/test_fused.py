"""The decoder's update in one pass equals the optimizer's chain."""

import dataclasses

from helpers.small_planted import PlantedShards
import jax
import numpy as np
import pytest

from jumprelu_jax import errors
from jumprelu_jax import fused
from jumprelu_jax import loop
from jumprelu_jax import sharding
from jumprelu_jax import train

D, M = 24, 96


def float64_update(W, g, nu, rate, t, beta2, epsilon):
  """The same by NumPy."""
  W, g, nu = (np.asarray(a, np.float64) for a in (W, g, nu))
  g = g - np.sum(g * W, 1, keepdims=True) * W
  nu = beta2 * nu + (1 - beta2) * g**2
  W = W - rate * g / (np.sqrt(nu / (1 - beta2**t)) + epsilon)
  return W / np.linalg.norm(W, axis=1, keepdims=True), nu


@pytest.mark.parametrize('latents', [96, 7, 512])
def test_update_equals_float64(latents):
  rng = np.random.default_rng(0)
  W, g = rng.normal(size=(2, latents, D)).astype('float32')
  W /= np.linalg.norm(W, axis=1, keepdims=True)
  nu = np.abs(rng.normal(size=(latents, D))).astype('float32')
  want = float64_update(W, g, nu, 3e-2, 4, 0.98, 1e-8)
  got = fused.update_decoder(
    W,
    g,
    nu,
    rate=np.float32(3e-2),
    correction=np.float32(1 - 0.98**4),
    beta2=0.98,
    epsilon=1e-8,
    interpret=True,
  )
  for one, wanted in zip(got, want, strict=True):
    np.testing.assert_allclose(one, wanted, rtol=1e-5, atol=1e-6)


@pytest.fixture
def run(make_run):
  return make_run(
    sae__num_latents=M,
    sae__initial_threshold=0.1,
    objective__bandwidth=0.05,
    objective__sparsity_coeff=0.02,
    objective__sparsity_warmup_steps=0,
    train__batch_size=64,
    train__steps=6,
    train__steps_per_log=2,
    train__steps_per_checkpoint=2,
    optimizer__warmup_steps=2,
    optimizer__beta1=0.0,
  )


@pytest.mark.parametrize('shape', [(1, 1), (2, 4)])
@pytest.mark.parametrize('architecture', ['jumprelu', 'jumprelu_raw_threshold'])
def test_training_is_the_same(run, tmp_path, shape, architecture):
  run = run.with_values({'sae.architecture': architecture})
  fused_run = run.with_values({'optimizer.is_fused': True})
  mesh = sharding.make_mesh(*shape)
  want = loop.fit(run, PlantedShards(), mesh, tmp_path / 'chain')
  got = loop.fit(fused_run, PlantedShards(), mesh, tmp_path / 'fused')
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
  'values',
  [
    {'optimizer.beta1': 0.9},
    {'optimizer.max_gradient_norm': 1.0},
    {'optimizer.threshold_gradient_decay': 0.9},
    {'sae.architecture': 'jumprelu_free_norm', 'objective.name': 'ri_l1'},
  ],
)
def test_what_it_does_not_do_is_refused(run, values):
  train.check(run.with_values(values))
  wanted = run.with_values({**values, 'optimizer.is_fused': True})
  with pytest.raises(errors.InputError, match='is_fused=True is for unit'):
    train.check(wanted)
  plain = dataclasses.replace(wanted.optimizer, is_fused=False)
  train.check(dataclasses.replace(wanted, optimizer=plain))
