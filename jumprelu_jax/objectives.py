"""What training minimises: squared error plus penalties, which compose.

An objective is `(sae, x_BD, coefficients, jump) -> (loss, terms)`: a scalar and
a dict of scalars to log, float32, on activations of unit mean squared norm. It
is a sum of the squared error and penalties; a penalty is a function of a
`Forward` pass and the coefficients. A new loss is a new penalty, and a row of
OBJECTIVES.
"""

from __future__ import annotations

from collections.abc import Callable
import functools

import flax.struct
import jax
from jax import numpy as jnp

from jumprelu_jax import kernels
from jumprelu_jax import ops
from jumprelu_jax import sae as sae_lib


@flax.struct.dataclass
class Coefficients:
  """The numbers of an objective that may differ between runs of one program.

  Attributes:
    sparsity_coeff: lambda, weight of the sparsity term.
    bandwidth: epsilon, width of the straight-through estimator's kernel.
    target_l0: L0 that the target penalties aim at.
    frequency_scale: firing frequency at which the quadratic penalty doubles.
    tanh_scale: c of the tanh penalty.
    pre_activation_coeff: weight of the pre-activation term.
  """

  sparsity_coeff: jax.Array | float
  bandwidth: jax.Array | float
  target_l0: jax.Array | float = 1.0
  frequency_scale: jax.Array | float = 1.0
  tanh_scale: jax.Array | float = 1.0
  pre_activation_coeff: jax.Array | float = 0.0


@flax.struct.dataclass
class Jump:
  """Estimator and kernel with which a run's jumps are differentiated.

  Attributes:
    estimator: static; a value of `ops.ESTIMATORS`.
    kernel: static; a value of `kernels.KERNELS`.
  """

  estimator: ops.Estimator = flax.struct.field(
    pytree_node=False, default=ops.ESTIMATORS['threshold']
  )
  kernel: kernels.Kernel = flax.struct.field(
    pytree_node=False, default=kernels.rectangle
  )


@flax.struct.dataclass
class Forward:
  """What penalties see of a pass over a batch.

  Attributes:
    pre_BM: pre-activations, before any ReLU.
    f_BM: activations.
    active_BM: 1 where a latent fires, with the estimator's gradient.
    threshold_M: thresholds.
    norm_M: norms of the decoder's rows.
  """

  pre_BM: jax.Array
  f_BM: jax.Array
  active_BM: jax.Array
  threshold_M: jax.Array
  norm_M: jax.Array


Penalty = Callable[[Forward, Coefficients], jax.Array]


def l0(forward: Forward, c: Coefficients) -> jax.Array:
  """The paper's: lambda E||f||_0 (arXiv:2407.14435, Eqs. 9 and 10)."""
  return c.sparsity_coeff * _mean_l0(forward)


def target_l0(forward: Forward, c: Coefficients) -> jax.Array:
  """Of each row's L0: lambda E (||f||_0 / target - 1)^2.

  arXiv:2407.14435, App. F, Eq. 40.

  Rows that differ in L0 cost, too.
  """
  l0_B = jnp.sum(forward.active_BM, axis=-1)
  return c.sparsity_coeff * jnp.mean((l0_B / c.target_l0 - 1) ** 2)


def target_mean_l0(forward: Forward, c: Coefficients) -> jax.Array:
  """Of the batch's mean L0: lambda (E||f||_0 / target - 1)^2.

  Leaves rows free to differ; the loss of dictionary_learning and SAEBench.
  """
  return c.sparsity_coeff * (_mean_l0(forward) / c.target_l0 - 1) ** 2


def quadratic_frequency(forward: Forward, c: Coefficients) -> jax.Array:
  """Of frequencies p in the batch: lambda sum over M of p (1 + p / p0).

  Keeps latents from firing on a large share of rows (Google DeepMind's update
  of March 2025); p0 is `frequency_scale`.
  """
  p_M = jnp.mean(forward.active_BM, axis=0)
  return c.sparsity_coeff * jnp.sum(p_M * (1 + p_M / c.frequency_scale))


def tanh(forward: Forward, c: Coefficients) -> jax.Array:
  """Anthropic's of January 2025: smooth in f, it reaches every parameter.

  lambda E sum over M of tanh(c f ||d||).
  """
  size_BM = jnp.abs(forward.f_BM) * forward.norm_M[None]
  return c.sparsity_coeff * _mean_sum(jnp.tanh(c.tanh_scale * size_BM))


def pre_activation(forward: Forward, c: Coefficients) -> jax.Array:
  """lambda_P E sum ReLU(threshold - pre) ||d|| (Anthropic, January 2025).

  Pulls the pre-activations of latents that do not fire up to their thresholds,
  so that none stays dead.
  """
  below_BM = jax.nn.relu(forward.threshold_M[None] - forward.pre_BM)
  return c.pre_activation_coeff * _mean_sum(below_BM * forward.norm_M[None])


def l1(forward: Forward, c: Coefficients) -> jax.Array:
  """L1: lambda E||f||_1."""
  return c.sparsity_coeff * _mean_sum(forward.f_BM)


def ri_l1(forward: Forward, c: Coefficients) -> jax.Array:
  """L1 that no rescaling of rows changes: lambda E sum f ||d||."""
  return c.sparsity_coeff * _mean_sum(forward.f_BM * forward.norm_M[None])


def objective(
  penalties: tuple[Penalty, ...],
  sae: sae_lib.JumpReLU,
  x_BD: jax.Array,
  coefficients: Coefficients,
  jump: Jump = Jump(),  # noqa: B008 (frozen, and holds no array)
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Mean over B of the squared error, summed over D, plus penalties.

  Returns:
    The loss, and terms 'squared_error' (per row) and 'l0' (latents per row).

  Raises:
    ValueError: the shapes do not agree.
  """
  bandwidth, threshold_M = coefficients.bandwidth, sae.threshold
  pre_BM = sae.linear(x_BD)
  positive_BM = jax.nn.relu(pre_BM)  # see `JumpReLU.pre_activations`
  f_BM = jump.estimator.jumprelu(
    positive_BM, threshold_M, bandwidth, jump.kernel
  )
  active_BM = jump.estimator.step(
    positive_BM, threshold_M, bandwidth, jump.kernel
  )
  norm_M = jnp.linalg.norm(sae.W_dec, axis=-1)
  forward = Forward(pre_BM, f_BM, active_BM, threshold_M, norm_M)
  squared_error = _mean_sum((x_BD - sae.decode(f_BM)) ** 2)
  loss = squared_error
  for penalty in penalties:
    loss += penalty(forward, coefficients)
  return loss, {'squared_error': squared_error, 'l0': _mean_l0(forward)}


def _compose(*penalties):
  return functools.partial(objective, penalties)


def _mean_l0(forward):
  return _mean_sum(forward.active_BM)


def _mean_sum(value_BM):
  """Mean over rows of a sum over the rest."""
  return jnp.mean(jnp.sum(value_BM, axis=-1))


#: Objectives by the names that configs and results.csv use.
OBJECTIVES: dict[str, Callable] = {
  'l0': _compose(l0),
  'target_l0': _compose(target_l0),
  'target_mean_l0': _compose(target_mean_l0),
  'quadratic_frequency': _compose(quadratic_frequency),
  'tanh': _compose(tanh, pre_activation),
  'l1': _compose(l1),
  'ri_l1': _compose(ri_l1),
}
