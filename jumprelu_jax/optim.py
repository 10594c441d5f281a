"""The optimizer: gradient projection, Adam, learning rates.

Gemma Scope (arXiv:2408.05147), section 3: Adam with beta1 = 0 on gradients from
which the part along each decoder row is removed; a cosine warm-up from a tenth
of the learning rate. Decoder rows are renormalised after the update, in
`train`, as that is no function of the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
from jax import numpy as jnp
import optax

from jumprelu_jax import config as config_lib
from jumprelu_jax import health


def remove_gradient_along_decoder_rows() -> optax.GradientTransformation:
  """Removes from each row of W_dec's gradient its part along that row.

  Rows have unit norm and keep it, so that part would only disturb Adam's second
  moment. Leaves alone an SAE whose rows may have any norm.
  """

  def update(updates, state, params):
    if not params.has_unit_decoder:
      return updates, state
    along_M1 = _along_decoder_rows(updates, params)
    W_dec = updates.W_dec - along_M1 * params.W_dec
    return updates.replace(W_dec=W_dec), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _along_decoder_rows(gradients, sae):
  return jnp.sum(gradients.W_dec * sae.W_dec, axis=-1, keepdims=True)


def adam(
  beta1: float, beta2: float, epsilon: float
) -> optax.GradientTransformationExtraArgs:
  """Adam's scaling with bias correction; no first moment when beta1 is 0.

  optax's numbers and states. `goes_on`, an argument of each update, keeps the
  moments where it is false; and the update is made of those that are kept, so
  that the compiler needs each moment once.
  """
  if beta1 == 0:
    init = optax.scale_by_rms(decay=beta2, bias_correction=True).init
  else:
    init = optax.scale_by_adam(b1=beta1, b2=beta2).init

  def update(updates, state, params=None, *, goes_on=True, **extra):
    del params, extra
    count = optax.safe_increment(state.count)
    nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, beta2, 2)
    nu = health.choose(goes_on, nu, state.nu)
    nu_hat = optax.tree.bias_correction(nu, beta2, count)
    if beta1 == 0:
      scaled = jax.tree.map(
        lambda g, n: 1 / (jnp.sqrt(n) + epsilon) * g, updates, nu_hat
      )
      return scaled, state._replace(count=count, nu=nu)
    mu = optax.tree.update_moment(updates, state.mu, beta1, 1)
    mu = health.choose(goes_on, mu, state.mu)
    mu_hat = optax.tree.bias_correction(mu, beta1, count)
    scaled = jax.tree.map(
      lambda m, n: m / (jnp.sqrt(n) + epsilon), mu_hat, nu_hat
    )
    return scaled, state._replace(count=count, mu=mu, nu=nu)

  return optax.GradientTransformationExtraArgs(init, update)


def persistent_threshold_gradient(decay: float) -> optax.GradientTransformation:
  """Averages the thresholds' gradients over the last steps, before Adam.

  The estimator sees few rows in a window of one batch; an average over about
  1 / (1 - decay) batches is one over as many more, of thresholds that have
  moved a little since. Corrected for its start at zero. Not from the paper.
  """
  average = optax.ema(decay, debias=True)

  def is_threshold(tree):
    return jax.tree_util.tree_map_with_path(
      lambda path, _: _is_threshold(path), tree
    )

  return optax.masked(average, is_threshold)


#: Share of the learning rate by the share of the decay that remains.
DECAYS = {
  'cosine': lambda remaining: 0.5 * (1 - jnp.cos(jnp.pi * remaining)),
  'linear': lambda remaining: remaining,
}


def learning_rate_schedule(
  peak: float,
  *,
  warmup_steps: int,
  decay_steps: int,
  total_steps: int,
  decay: str = 'cosine',
) -> optax.Schedule:
  """Cosine warm-up from peak / 10; constant; decay to zero at the end.

  Args:
    peak: learning rate between warm-up and decay.
    warmup_steps: steps of warm-up, may be 0.
    decay_steps: steps of decay before the last one, may be 0.
    total_steps: steps of the run.
    decay: a name in DECAYS.
  """

  def schedule(step):
    warmup = jnp.clip((step + 1) / max(warmup_steps, 1), 0, 1)
    warmup = 0.1 + 0.9 * 0.5 * (1 - jnp.cos(jnp.pi * warmup))
    remaining = jnp.clip((total_steps - step) / max(decay_steps, 1), 0, 1)
    return peak * warmup * DECAYS[decay](remaining)

  return schedule


@flax.struct.dataclass
class Rates:
  """Learning rates between warm-up and decay; may be traced.

  Attributes:
    learning_rate: of all parameters but thresholds.
    threshold_learning_rate: of thresholds, or their logarithms.
  """

  learning_rate: jax.Array | float
  threshold_learning_rate: jax.Array | float


def at_rates() -> optax.GradientTransformationExtraArgs:
  """Multiplies updates by `rates`, an argument of each update."""

  def update(updates, state, params=None, *, rates, **extra):
    del params, extra

    def scale(path, leaf):
      if _is_threshold(path):
        return rates.threshold_learning_rate * leaf
      return rates.learning_rate * leaf

    return jax.tree_util.tree_map_with_path(scale, updates), state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )


class Optimizer(NamedTuple):
  """Three pure functions.

  Attributes:
    init: SAE → state.
    step: (gradients, state, SAE, rates, goes_on) → (SAE within its constraints,
      state); where `goes_on` is false, both as they were.
    seen: (gradients, SAE) → arrays that a step computes anyway, and that are
      not finite where the gradients or the SAE are not.
  """

  init: Callable
  step: Callable
  seen: Callable


def make(config: config_lib.OptimizerConfig, total_steps: int) -> Optimizer:
  """Returns the optimizer of `updates`; arguments likewise."""
  tx = updates(config, total_steps)

  def step(gradients, state, sae, rates, goes_on=True):
    changes, after = tx.update(
      gradients, state, sae, rates=rates, goes_on=goes_on
    )
    moved = optax.apply_updates(sae, changes)
    # Twice: a choice after the constraint alone would have to keep, or read, a
    # third copy of the decoder.
    moved = health.choose(goes_on, moved, sae)
    sae = health.choose(goes_on, moved.constrain(), moved)
    return sae, keep_small(goes_on, after, state)

  def seen(gradients, sae):
    unit = sae.has_unit_decoder
    return [_along_decoder_rows(gradients, sae)] if unit else []

  return Optimizer(tx.init, step, seen)


def keep_small(
  goes_on: jax.Array | bool, after: optax.OptState, before: optax.OptState
) -> optax.OptState:
  """Returns a state with counts and vectors as before where it has to stop.

  `adam` has kept its matrices already; to choose again would cost a pass.
  """
  return jax.tree.map(
    lambda a, b: a if a.ndim > 1 else jnp.where(goes_on, a, b), after, before
  )


def schedule_of(
  config: config_lib.OptimizerConfig, total_steps: int
) -> optax.Schedule:
  """Returns the share of the learning rates that a step takes."""
  return learning_rate_schedule(
    1.0,
    warmup_steps=config.warmup_steps,
    decay_steps=round(config.decay_fraction * total_steps),
    total_steps=total_steps,
    decay=config.decay,
  )


def updates(
  config: config_lib.OptimizerConfig, total_steps: int
) -> optax.GradientTransformationExtraArgs:
  """Returns all that becomes of gradients; `update` takes `rates`, too.

  Args:
    config: decays; its learning rates are not read (see `Rates`).
    total_steps: of the run.

  Returns:
    What also takes `goes_on` (see `adam`).
  """
  parts = [remove_gradient_along_decoder_rows()]
  if config.max_gradient_norm:
    parts.append(optax.clip_by_global_norm(config.max_gradient_norm))
  if config.threshold_gradient_decay:
    parts.append(persistent_threshold_gradient(config.threshold_gradient_decay))
  return optax.chain(
    *parts,
    adam(config.beta1, config.beta2, config.epsilon),
    at_rates(),
    optax.scale_by_learning_rate(schedule_of(config, total_steps)),
  )


def _is_threshold(path):
  return path[-1].name.endswith('threshold')
