"""Parts of a training step that learn without a gradient.

A component has a state of its own, which is checkpointed with the rest:
`before` a step's loss it may change the objective's numbers, `after` it sees
the latents. Over a mesh it sees those of the whole batch. A new one is a
function that returns a `Component`, and a row of COMPONENTS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
from jax import numpy as jnp

from jumprelu_jax import config as config_lib
from jumprelu_jax import objectives
from jumprelu_jax.sae import maps

State = Any


def _keep(state, coefficients):
  del state
  return coefficients


class Seen(NamedTuple):
  """What a step shows to a component.

  Attributes:
    observed: what it has asked to observe.
    coefficients: the objective's numbers, as the step used them.
    l0: latents that fired, mean over rows.
    squared_error: of the SAE, mean over rows.
    penalty: what lambda weighs, times lambda.
    warmth: share of lambda that its warm-up allowed.
  """

  observed: Any
  coefficients: objectives.Coefficients
  l0: jax.Array
  squared_error: jax.Array
  penalty: jax.Array
  warmth: jax.Array


def _nothing(encoding, coefficients):
  del encoding, coefficients


class Component(NamedTuple):
  """Four pure functions.

  Attributes:
    init: num_latents → state. A leaf whose name ends in _M lies on the mesh as
      latents do (`sharding.RULES`).
    after: (state, seen) → state after a step.
    before: (state, coefficients) → coefficients of the step.
    observe: (encoding, coefficients) → what `after` sees of the latents.
  """

  init: Callable[[int], State]
  after: Callable[[State, Seen], State]
  before: Callable[
    [State, objectives.Coefficients], objectives.Coefficients
  ] = _keep
  observe: Callable[[maps.Encoding, objectives.Coefficients], Any] = _nothing


# Where counts stop, far below an int32's end: a run may be longer than 2^31.
_MOST_TOKENS = 2**30


def tokens_since_fired(config: config_lib.ObjectiveConfig) -> Component:
  """Counts tokens since each latent fired; gives AuxK the dead ones."""

  def observe(encoding, coefficients):
    del coefficients
    latents, active = encoding.latents, encoding.active
    return latents.per_latent(active), len(latents.per_row(active))

  def after(state, seen):
    counts_M, rows = seen.observed
    tokens_M = jnp.minimum(state['tokens_M'], _MOST_TOKENS) + rows
    return {'tokens_M': jnp.where(counts_M > 0, 0, tokens_M)}

  def before(state, coefficients):
    dead_M = state['tokens_M'] >= config.dead_after_tokens
    return coefficients.replace(dead_M=dead_M)

  return Component(
    lambda M: {'tokens_M': jnp.zeros(M, 'int32')}, after, before, observe
  )


# Averages over about 100 steps, as BatchTopK's authors' code.
_THRESHOLD_DECAY = 0.99


def selection_threshold(config: config_lib.ObjectiveConfig) -> Component:
  """Averages the smallest selected pre-activation (arXiv:2412.06410, Eq. 6).

  The threshold with which a BatchTopK SAE is used, in the units of training.
  """
  del config

  def after(state, seen):
    cutoff, old = seen.observed, state['threshold']
    mean = _THRESHOLD_DECAY * old + (1 - _THRESHOLD_DECAY) * cutoff
    return {'threshold': jnp.where(old < 0, cutoff, mean)}

  return Component(
    lambda M: {'threshold': jnp.full((), -1.0, 'float32')},
    after,
    observe=lambda encoding, coefficients: encoding.threshold,
  )


# Bounds of the penalty, as multiples of the squared error.
_LEAST_PENALTY, _MOST_PENALTY = 0.1, 10.0


def l0_controller(config: config_lib.ObjectiveConfig) -> Component:
  """Adapts lambda until L0 is `target_l0`, whatever lambda was at first.

  Proportional-integral control: log lambda follows the log of L0 / target by
  `controller_gain`, and adds up the share `controller_rate` of it at each step.
  The sum stays where the penalty is between a tenth and ten times the squared
  error: below, lambda has no effect that could be waited for; above, it kills
  latents. Not from the paper.
  """

  def log_factor(state):
    return state['integral'] + config.controller_gain * state['error']

  def after(state, seen):
    ratio = jnp.maximum(seen.l0, 1e-3) / seen.coefficients.target_l0
    error = jnp.log(ratio)
    error = jnp.clip(error, -1, 1)
    old = state['integral']
    integral = old + config.controller_rate * error
    penalty = jnp.maximum(seen.penalty, 1e-30)
    full_penalty = penalty / jnp.maximum(seen.warmth, 1e-30)
    # The integral with which the penalty would equal the squared error.
    even = log_factor(state) + jnp.log(seen.squared_error / full_penalty)
    low, high = even + jnp.log(_LEAST_PENALTY), even + jnp.log(_MOST_PENALTY)
    # A bound may stop the integral, or hurry it, but not turn it round.
    low = jnp.where(error > 0, low, jnp.minimum(low, old))
    high = jnp.where(error < 0, high, jnp.maximum(high, old))
    bounded = jnp.clip(integral, low, high)
    # Without a penalty, as where nothing fires, there is nothing to bound by.
    integral = jnp.where(seen.penalty > 0, bounded, integral)
    return {'integral': integral, 'error': error}

  def before(state, coefficients):
    factor = jnp.exp(log_factor(state))
    return coefficients.replace(
      sparsity_coeff=factor * coefficients.sparsity_coeff
    )

  def init(num_latents):
    del num_latents
    return {'integral': jnp.zeros(()), 'error': jnp.zeros(())}

  return Component(init, after, before)


def adaptive_bandwidth(config: config_lib.ObjectiveConfig) -> Component:
  """Gives each latent a bandwidth in which `window_rows` of a batch fall.

  The estimator's variance is that of a kernel density estimate from the rows in
  the window, so that rare latents want wider windows than frequent ones. A
  bandwidth stays within a factor of 8 of the config's. Not from the paper.
  """
  rate, largest = 0.01, jnp.log(8.0)

  def observe(encoding, coefficients):
    latents, threshold_M = encoding.latents, encoding.threshold
    half_M = jnp.broadcast_to(coefficients.bandwidth / 2, threshold_M.shape)
    distance = jnp.abs(encoding.pre - latents.each(threshold_M))
    is_near = (distance < latents.each(half_M)).astype('float32')
    return latents.per_latent(latents.kept(is_near))

  def after(state, seen):
    rows_M = seen.observed
    log_ratio_M = jnp.log((rows_M + 0.5) / (config.window_rows + 0.5))
    log_factor_M = state['log_factor_M'] - rate * jnp.clip(log_ratio_M, -1, 1)
    return {'log_factor_M': jnp.clip(log_factor_M, -largest, largest)}

  def before(state, coefficients):
    factor_M = jnp.exp(state['log_factor_M'])
    return coefficients.replace(bandwidth=factor_M * coefficients.bandwidth)

  return Component(
    lambda M: {'log_factor_M': jnp.zeros(M)}, after, before, observe
  )


#: Components by the names that configs use.
COMPONENTS = {
  'tokens_since_fired': tokens_since_fired,
  'selection_threshold': selection_threshold,
  'l0_controller': l0_controller,
  'adaptive_bandwidth': adaptive_bandwidth,
}
#: Those that a config may name; the rest belong to architectures, or to all.
OPTIONAL = ('l0_controller', 'adaptive_bandwidth')
