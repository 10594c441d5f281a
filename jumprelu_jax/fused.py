"""The decoder's update in one pass over its rows, as a Pallas kernel for TPUs.

Projection, Adam and renormalisation each need a sum over a row before the next
can begin, so that XLA reads and writes the decoder, its gradient and its second
moment several times. A block of rows that stays in a chip's fast memory needs
to be read once and written once. The same numbers as `optim`'s chain, up to the
order of sums.
"""

from __future__ import annotations

import functools

import jax
from jax import numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P
import optax

from jumprelu_jax import config as config_lib
from jumprelu_jax import health
from jumprelu_jax import optim

# Five blocks, of what is read and written, each held twice to overlap copies.
_BLOCK_BYTES = 2**20
_MOST_ROWS = 256


def make(
  config: config_lib.OptimizerConfig, total_steps: int, *, interpret: bool
) -> optim.Optimizer:
  """Returns `optim.make` with the decoder updated in one pass; states alike.

  Args:
    config: of Adam without a first moment, and nothing else done to gradients.
    total_steps: of the run.
    interpret: as `update_decoder`.
  """
  whole, schedule = (
    f(config, total_steps) for f in (optim.updates, optim.schedule_of)
  )
  others = optax.chain(
    optim.adam(config.beta1, config.beta2, config.epsilon),
    optim.at_rates(),
    optax.scale_by_learning_rate(schedule),
  )

  def step(gradients, state, sae, rates, goes_on=True):
    projection, rms, *rest = state
    W_dec, nu = update_decoder(
      sae.W_dec,
      gradients.W_dec,
      rms.nu.W_dec,
      rate=rates.learning_rate * schedule(rms.count),
      correction=1 - config.beta2 ** (rms.count + 1),
      goes_on=goes_on,
      beta2=config.beta2,
      epsilon=config.epsilon,
      interpret=interpret,
    )
    sae, rms = _without_decoder(sae), rms._replace(nu=_without_decoder(rms.nu))
    before = (rms, *rest)
    changes, after = others.update(
      _without_decoder(gradients), before, sae, rates=rates, goes_on=goes_on
    )
    moved = optax.apply_updates(sae, changes).constrain()
    sae = health.choose(goes_on, moved, sae).replace(W_dec=W_dec)
    rms, *rest = optim.keep_small(goes_on, after, before)
    rms = rms._replace(nu=rms.nu.replace(W_dec=nu))
    return sae, (projection, rms, *rest)

  # The kernel's sums over rows stay in the kernel.
  return optim.Optimizer(whole.init, step, lambda gradients, sae: [])


def _without_decoder(sae):
  return sae.replace(W_dec=None)


def update_decoder(
  W_MD: jax.Array,
  g_MD: jax.Array,
  nu_MD: jax.Array,
  *,
  rate: jax.Array,
  correction: jax.Array,
  beta2: float,
  epsilon: float,
  goes_on: jax.Array | bool = True,
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """Takes Adam's step (beta1 = 0) on unit rows, which stay of unit norm.

  With g' = g - (g . w) w of a row w: nu := beta2 nu + (1 - beta2) g'^2, then
  w := w - rate g' / (sqrt(nu / correction) + epsilon), over its norm.

  Args:
    W_MD: decoder, unit rows, float32.
    g_MD: its gradient.
    nu_MD: Adam's second moment.
    rate: learning rate of this step.
    correction: 1 - beta2^t of step t, from 1.
    beta2: decay of the second moment.
    epsilon: added to the root.
    goes_on: false leaves both as they are.
    interpret: runs the kernel as ordinary operations, on any device.

  Returns:
    The decoder and the second moment after the step; each may take the memory
    of the one before.
  """
  scalars_3 = jnp.stack(
    [jnp.asarray(x, 'float32') for x in (rate, 1 / correction, goes_on)]
  )
  update = functools.partial(
    _update_rows, beta2=beta2, epsilon=epsilon, interpret=interpret
  )
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.shape['latent'] == 1:
    return update(scalars_3, W_MD, g_MD, nu_MD)
  rows = P('latent', None)
  return jax.shard_map(
    update,
    in_specs=(P(), rows, rows, rows),
    out_specs=(rows, rows),
    check_vma=False,  # the kernel says nothing of the other axes
  )(scalars_3, W_MD, g_MD, nu_MD)


def _update_rows(scalars_3, W_MD, g_MD, nu_MD, *, beta2, epsilon, interpret):
  M, D = W_MD.shape
  rows = _rows_of_a_block(M, D)
  block = pl.BlockSpec((rows, D), lambda i: (i, 0))
  return pl.pallas_call(
    functools.partial(_kernel, beta2=beta2, epsilon=epsilon),
    grid=(M // rows,),
    in_specs=[
      pl.BlockSpec(memory_space=pltpu.SMEM),
      block,
      block,
      block,
    ],
    out_specs=[block, block],
    out_shape=[jax.ShapeDtypeStruct((M, D), 'float32')] * 2,
    input_output_aliases={1: 0, 3: 1},
    interpret=interpret,
    name='update_decoder',
  )(scalars_3, W_MD, g_MD, nu_MD)


def _kernel(scalars, W, g, nu, W_out, nu_out, *, beta2, epsilon):
  """Updates a block of rows; arguments are references to memory."""
  rate, inverse_correction, goes_on = scalars[0], scalars[1], scalars[2] > 0
  W_KD, g_KD = W[...], g[...]
  g_KD -= jnp.sum(g_KD * W_KD, axis=1, keepdims=True) * W_KD
  nu_KD = beta2 * nu[...] + (1 - beta2) * g_KD * g_KD
  nu_out[...] = jnp.where(goes_on, nu_KD, nu[...])
  scale_KD = 1 / (jnp.sqrt(nu_KD * inverse_correction) + epsilon)
  W_KD -= rate * scale_KD * g_KD
  square_K1 = jnp.sum(W_KD * W_KD, axis=1, keepdims=True)
  W_out[...] = jnp.where(goes_on, W_KD / jnp.sqrt(square_K1), W[...])


def _rows_of_a_block(num_rows, row_size):
  """Returns the largest power of two that divides the rows and fits."""
  rows = _MOST_ROWS
  while num_rows % rows or 4 * rows * row_size > _BLOCK_BYTES:
    rows //= 2
    if rows <= 1:
      return 1
  return rows
