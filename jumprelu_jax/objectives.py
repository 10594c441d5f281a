"""What training minimises: reconstruction error plus penalties, which compose.

A penalty is a function of a `Forward` pass and the `Coefficients`, a float32
scalar, on activations of unit mean squared norm; a reconstruction is a function
of the same that returns predictions. A run's objective is a list of penalties
by name, 'l0' or 'tanh+pre_activation'. A new loss is a new function, and a row
of OBJECTIVES.
"""

from __future__ import annotations

from collections.abc import Callable
import itertools
from typing import Any

import flax.struct
import jax
from jax import numpy as jnp

from jumprelu_jax import errors
from jumprelu_jax import ops
from jumprelu_jax import selection
from jumprelu_jax import sparse
from jumprelu_jax.sae import maps
from jumprelu_jax.sae import trained


@flax.struct.dataclass
class Coefficients:
  """The numbers of an objective; those that are no shapes may be traced.

  Attributes:
    sparsity_coeff: lambda, weight of the sparsity term.
    bandwidth: epsilon, width of the straight-through estimator's kernel; one,
      or [M].
    target_l0: L0 that the target penalties aim at.
    frequency_scale: firing frequency at which the quadratic penalty doubles.
    tanh_scale: c of the tanh penalty.
    pre_activation_coeff: weight of the pre-activation term.
    aux_k_coeff: alpha, weight of AuxK.
    dead_M: latents that AuxK revives, bool; None without any.
    aux_k: static; latents that AuxK takes of a row.
    prefixes: static; latents of each nested SAE (Matryoshka), increasing.
  """

  sparsity_coeff: jax.Array | float
  bandwidth: jax.Array | float
  target_l0: jax.Array | float = 1.0
  frequency_scale: jax.Array | float = 1.0
  tanh_scale: jax.Array | float = 1.0
  pre_activation_coeff: jax.Array | float = 0.0
  aux_k_coeff: jax.Array | float = 0.0
  dead_M: jax.Array | None = None
  aux_k: int = flax.struct.field(pytree_node=False, default=0)
  prefixes: tuple[int, ...] = flax.struct.field(pytree_node=False, default=())


@flax.struct.dataclass
class Forward:
  """A pass over a batch.

  Attributes:
    sae: its parameters.
    x_BD: input.
    y_BD: what is to be predicted: the input, or a transcoder's target.
    encoding: the latents.
    y_hats: predictions [B, D] that are to be near y; the last is the SAE's.
  """

  sae: trained.Trained
  x_BD: jax.Array
  y_BD: jax.Array
  encoding: maps.Encoding
  y_hats: tuple[jax.Array, ...]

  @property
  def norm_M(self) -> jax.Array:
    """Norms of the decoder's rows."""
    return jnp.linalg.norm(self.sae.W_dec, axis=-1)

  @property
  def norm(self) -> jax.Array:
    """Norms of the decoder's rows, to go with arrays of latents."""
    return self.encoding.latents.each(self.norm_M)

  @property
  def pre_BM(self) -> jax.Array:
    """What decides who fires, of all latents, also on a support."""
    latents = self.encoding.latents
    if not isinstance(latents, sparse.Support):
      return self.encoding.pre
    linear_BM = sparse.dense_linear(self.sae, self.x_BD, latents.known_BM)
    # Each latent's gradient is one sum, which a product rounds once.
    return latents.spread(self.encoding.pre, self.sae.deciding(linear_BM))

  def per_row(self, value: jax.Array) -> jax.Array:
    """Returns sums over latents, [B]."""
    return self.encoding.latents.per_row(value)

  def mean_sum(self, value: jax.Array) -> jax.Array:
    """Returns the mean over rows of sums over latents."""
    return jnp.mean(self.per_row(value))

  @property
  def residual_BD(self) -> jax.Array:
    """What the SAE leaves unexplained."""
    return self.y_BD - self.y_hats[-1]


Penalty = Callable[[Forward, Coefficients], jax.Array]
Reconstruction = Callable[..., tuple[jax.Array, ...]]


def whole(
  sae: trained.Trained,
  encoding: maps.Encoding,
  x_BD: jax.Array,
  c: Coefficients,
) -> tuple[jax.Array, ...]:
  """The reconstruction of all latents, alone."""
  del c
  return (sae.predict_on(encoding.latents, encoding.f, x_BD),)


def nested(
  sae: trained.Trained,
  encoding: maps.Encoding,
  x_BD: jax.Array,
  c: Coefficients,
) -> tuple[jax.Array, ...]:
  """Matryoshka's: one of each prefix of the latents (arXiv:2503.17547, Eq. 4).

  Each adds the latents that the one before lacks, so that all of them together
  cost one decoder product.
  """
  groups = (
    encoding.latents.decode(sae, encoding.f, bounds)
    for bounds in itertools.pairwise((0, *c.prefixes))
  )
  bias_BD = sae.b_dec[None] + sae.skip(x_BD)
  return tuple(y_BD + bias_BD for y_BD in itertools.accumulate(groups))


def l0(forward: Forward, c: Coefficients) -> jax.Array:
  """The paper's: lambda E||f||_0 (arXiv:2407.14435, Eqs. 9 and 10)."""
  return c.sparsity_coeff * _mean_l0(forward)


def target_l0(forward: Forward, c: Coefficients) -> jax.Array:
  """Of each row's L0: lambda E (||f||_0 / target - 1)^2.

  arXiv:2407.14435, App. F, Eq. 40.

  Rows that differ in L0 cost, too.
  """
  l0_B = forward.per_row(forward.encoding.active)
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
  encoding = forward.encoding
  p_M = encoding.latents.per_latent(encoding.active) / len(forward.x_BD)
  return c.sparsity_coeff * jnp.sum(p_M * (1 + p_M / c.frequency_scale))


def tanh(forward: Forward, c: Coefficients) -> jax.Array:
  """Anthropic's of January 2025: smooth in f, it reaches every parameter.

  lambda E sum over M of tanh(c f ||d||).
  """
  size = jnp.abs(forward.encoding.f) * forward.norm
  return c.sparsity_coeff * forward.mean_sum(jnp.tanh(c.tanh_scale * size))


def pre_activation(forward: Forward, c: Coefficients) -> jax.Array:
  """lambda_P E sum ReLU(threshold - pre) ||d|| (Anthropic, January 2025).

  Pulls the pre-activations of latents that do not fire up to their thresholds,
  so that none stays dead.
  """
  threshold_M = forward.encoding.threshold
  below_BM = jax.nn.relu(threshold_M[None] - forward.pre_BM)
  weighed_BM = below_BM * forward.norm_M[None]
  return c.pre_activation_coeff * _mean_sum(weighed_BM)


def l1(forward: Forward, c: Coefficients) -> jax.Array:
  """L1: lambda E||f||_1; of Gated SAEs that of the gate (arXiv:2404.16014)."""
  return c.sparsity_coeff * forward.mean_sum(forward.encoding.size)


def ri_l1(forward: Forward, c: Coefficients) -> jax.Array:
  """L1 that no rescaling of rows changes: lambda E sum f ||d||.

  Of Anthropic's April 2024, and arXiv:2407.14435, App. D, for Gated SAEs.
  """
  size = forward.encoding.size * forward.norm
  return c.sparsity_coeff * forward.mean_sum(size)


def gate_error(forward: Forward, c: Coefficients) -> jax.Array:
  """Squared error of the reconstruction from a Gated SAE's gates alone.

  E||y - y_hat(ReLU(gate))||^2: the gate's only way to learn, as its step has no
  gradient (arXiv:2407.14435, App. D).
  """
  del c
  encoding = forward.encoding
  y_hat_BD = forward.sae.predict_on(
    encoding.latents, encoding.size, forward.x_BD
  )
  return _mean_sum((forward.y_BD - y_hat_BD) ** 2)


def frozen_gate_error(forward: Forward, c: Coefficients) -> jax.Array:
  """`gate_error` that does not train the decoder (arXiv:2404.16014, Eq. 8)."""
  frozen = jax.tree.map(jax.lax.stop_gradient, forward.sae)
  return gate_error(forward.replace(sae=frozen), c)


def aux_k(forward: Forward, c: Coefficients) -> jax.Array:
  """AuxK: dead latents predict what the others left (arXiv:2406.04093, A.2).

  alpha E||e - e_hat||^2 / E||e||^2, e = y - y_hat without a gradient and e_hat
  = f W_dec of the `aux_k` largest pre-activations among dead latents. 0 while
  none is dead, or nothing is left.
  """
  return jax.lax.cond(
    jnp.any(c.dead_M), _aux_k, lambda forward, c: jnp.zeros(()), forward, c
  )


def _aux_k(forward, c):
  residual_BD = jax.lax.stop_gradient(forward.residual_BD)
  # ReLU(-1) is 0: latents that are not dead fill up, and do not fire.
  pre_BM = jnp.where(c.dead_M[None], forward.pre_BM, -1)
  f_BM = selection.top_k(pre_BM, c.aux_k)
  sae = forward.sae
  e_hat_BD = ops.matmul(f_BM, sae.W_dec, sae.compute_dtype)
  total = _mean_sum(residual_BD**2)
  error = _mean_sum((residual_BD - e_hat_BD) ** 2)
  # Not error / total: where that is no number, its gradient is none either.
  share = error / jnp.where(total > 0, total, 1)
  return c.aux_k_coeff * jnp.where(total > 0, share, 0)


#: Objectives by the names that configs and results.csv use.
OBJECTIVES: dict[str, tuple[Penalty, ...]] = {
  'reconstruction': (),
  'l0': (l0,),
  'target_l0': (target_l0,),
  'target_mean_l0': (target_mean_l0,),
  'quadratic_frequency': (quadratic_frequency,),
  'tanh': (tanh,),
  'pre_activation': (pre_activation,),
  'l1': (l1,),
  'ri_l1': (ri_l1,),
  'gated': (l1, frozen_gate_error),
  'gated_ri_l1': (ri_l1, gate_error),
  'aux_k': (aux_k,),
}


# Penalties that lambda does not weigh.
_WITHOUT_LAMBDA = {pre_activation, gate_error, frozen_gate_error, aux_k}


def split(name: str) -> tuple[str, ...]:
  """Returns the objectives that 'l0+aux_k' names.

  Raises:
    errors.InputError: one is not known, or is there twice.
  """
  parts = tuple(name.split('+'))
  unknown = [part for part in parts if part not in OBJECTIVES]
  if unknown or len(set(parts)) < len(parts):
    what = (
      f'{unknown[0]!r} is not known' if unknown else 'a part is there twice'
    )
    raise errors.InputError(
      f'config.objective.name={name!r}: {what}; expected one of '
      f'{", ".join(OBJECTIVES)}, or several joined by +.'
    )
  return parts


def penalties(name: str) -> tuple[Penalty, ...]:
  """Returns the penalties of an objective's name; InputError as `split`."""
  return tuple(penalty for part in split(name) for penalty in OBJECTIVES[part])


def evaluate(
  reconstruct: Reconstruction,
  terms: tuple[Penalty, ...],
  jump: ops.Jump,
  sae: trained.Trained,
  x_BD: jax.Array,
  y_BD: jax.Array,
  c: Coefficients,
  latents: sparse.Latents = sparse.EVERYWHERE,
) -> tuple[jax.Array, tuple[dict[str, jax.Array], maps.Encoding]]:
  """Means over B of the squared errors, summed over D, plus penalties.

  Args:
    reconstruct: `whole` or `nested`.
    terms: penalties.
    jump: how jumps are differentiated.
    sae: parameters.
    x_BD: input, of unit mean squared norm.
    y_BD: target; x_BD itself but for transcoders.
    c: the objective's numbers.
    latents: all, or those of the SAE's support.

  Returns:
    The loss; scalars to log: 'squared_error' of the SAE (per row), 'l0'
    (latents per row), 'mean_threshold', 'extreme_thresholds' (the share near
    the limits of float32), 'penalty' (what lambda weighs) and each penalty
    under 'loss/'; and the latents.

  Raises:
    ValueError: the shapes do not agree.
  """
  encoding = sae.forward(x_BD, jump, c.bandwidth, latents)
  y_hats = reconstruct(sae, encoding, x_BD, c)
  forward = Forward(sae, x_BD, y_BD, encoding, y_hats)
  squared_errors = [_mean_sum((y_BD - y_hat_BD) ** 2) for y_hat_BD in y_hats]
  values = {term: term(forward, c) for term in terms}
  loss = sum([*squared_errors, *values.values()])
  metrics = {
    'squared_error': squared_errors[-1],
    'l0': _mean_l0(forward),
    'mean_threshold': jnp.mean(encoding.threshold),
    'extreme_thresholds': jnp.mean(
      _is_extreme(encoding.threshold), dtype='float32'
    ),
    'penalty': sum(
      (values[term] for term in terms if term not in _WITHOUT_LAMBDA),
      jnp.zeros(()),
    ),
  }
  metrics |= {f'loss/{term.__name__}': values[term] for term in terms}
  return loss, (metrics, encoding)


def gradients(
  evaluate_on: Callable,
  observe: Callable[[maps.Encoding], Any],
  jump: ops.Jump,
  sae: trained.Trained,
  x_BD: jax.Array,
  y_BD: jax.Array,
  c: Coefficients,
) -> tuple[tuple[jax.Array, tuple[dict[str, jax.Array], Any]], trained.Trained]:
  """Returns ((loss, (scalars, what was observed)), gradients).

  Where an SAE has a capacity, on its support, if that fits, and else on all
  latents, in the same program; the same but for the order of sums.

  Args:
    evaluate_on: `evaluate` of the arguments from the SAE on.
    observe: what is wanted of the latents, which are not kept.
    jump: how jumps are differentiated.
    sae: parameters.
    x_BD: input.
    y_BD: target.
    c: the objective's numbers.
  """

  def loss_fn(sae, latents):
    loss, (terms, encoding) = evaluate_on(sae, x_BD, y_BD, c, latents)
    return loss, (terms, observe(encoding))

  def on(latents):
    return jax.value_and_grad(loss_fn, has_aux=True)(sae, latents)

  if not sae.capacity:
    found = on(sparse.EVERYWHERE)
    is_sparse = jnp.zeros(())
  else:
    support = jax.tree.map(
      jax.lax.stop_gradient, sae.support(x_BD, jump, c.bandwidth)
    )
    found = jax.lax.cond(
      support.fits,
      lambda: on(support),
      lambda: on(sparse.Everywhere(support.known_BM)),
    )
    is_sparse = support.fits.astype('float32')
  (loss, (terms, observed)), grads = found
  return (loss, (terms | {'is_sparse': is_sparse}, observed)), grads


def _is_extreme(threshold_M):
  """Near the limits of float32; zero is no limit where thresholds may be it."""
  is_tiny_M = (threshold_M > 0) & (threshold_M < 1e-30)
  return is_tiny_M | ~(threshold_M < 1e30)


def _mean_l0(forward):
  return forward.mean_sum(forward.encoding.active)


def _mean_sum(value_BM):
  """Mean over rows of a sum over the rest."""
  return jnp.mean(jnp.sum(value_BM, axis=-1))
