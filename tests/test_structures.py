"""Trees of different architectures are different to JAX."""

import itertools

import jax
import pytest

from jumprelu_jax.sae import gated
from jumprelu_jax.sae import jumprelu
from jumprelu_jax.sae import relu
from jumprelu_jax.sae import topk

INITS = (
  jumprelu.init, jumprelu.init_free_norm, jumprelu.init_raw_threshold,
  gated.init, gated.init_free_norm, topk.init, topk.init_batch, relu.init,
)  # fmt: skip


@pytest.mark.parametrize(
  ('one', 'other'), list(itertools.combinations(INITS, 2))
)
def test_no_two_classes_have_one_structure(make_run, one, other):
  # JAX compares dataclasses by their static fields and not by their class: a
  # cache could give one the program of the other.
  config = make_run(sae__num_latents=16, sae__k=4).sae
  saes = [init(jax.random.key(0), (8,), config) for init in (one, other)]
  assert len(set(map(jax.tree.structure, saes))) == 2
  assert jax.tree.structure(saes[0]) != jax.tree.structure(saes[1])


@pytest.mark.parametrize('init', INITS)
def test_structures_outlive_transformations(make_run, init):
  sae = init(jax.random.key(0), (8,), make_run(sae__num_latents=16).sae)
  doubled = jax.jit(lambda sae: jax.tree.map(lambda a: 2 * a, sae))(sae)
  assert type(doubled) is type(sae)
  assert doubled.kind == sae.kind == type(sae).__name__
  assert jax.tree.structure(doubled) == jax.tree.structure(sae)
