"""Programs compiled ahead of time for a mesh that need not be there."""

from __future__ import annotations

import jax
import numpy as np

from jumprelu_jax import config as config_lib
from jumprelu_jax import sharding
from jumprelu_jax import train
from jumprelu_jax.lm import architecture as architecture_lib
from jumprelu_jax.lm import huggingface
from jumprelu_jax.lm import sites
from jumprelu_jax.lm import transformer


def compile_step(
  run: config_lib.RunConfig, d_model: int, mesh: jax.sharding.Mesh
) -> jax.stages.Compiled:
  """Returns the compiled training step of a run over a mesh."""
  _, step = train.compile_for(run, (d_model,), mesh)
  state = jax.eval_shape(
    lambda key: train.init_state(run, (d_model,), key), jax.random.key(0)
  )
  shape = (run.train.batch_size, d_model)
  rows = jax.ShapeDtypeStruct(shape, run.activations.dtype)
  numbers = train.numbers_of(run)
  return step.lower(state, rows, np.float32(1), numbers).compile()


def compile_tap(
  architecture: architecture_lib.Architecture,
  where: tuple[sites.Site, ...],
  run: config_lib.RunConfig,
  mesh: jax.sharding.Mesh,
) -> jax.stages.Compiled:
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

  return jax.jit(tap).lower(model, tokens).compile()
