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

from jax import numpy as jnp

from jumprelu_jax import config as config_lib
from jumprelu_jax import objectives
from jumprelu_jax.sae import maps

State = Any


def _keep(state, coefficients):
  del state
  return coefficients


class Component(NamedTuple):
  """Three pure functions.

  Attributes:
    init: num_latents → state. A leaf whose name ends in _M lies on the mesh as
      latents do (`sharding.RULES`).
    after: state, encoding, coefficients → state after a step.
    before: state, coefficients → coefficients of the step.
  """

  init: Callable[[int], State]
  after: Callable[[State, maps.Encoding, objectives.Coefficients], State]
  before: Callable[
    [State, objectives.Coefficients], objectives.Coefficients
  ] = _keep


# Where counts stop, far below an int32's end: a run may be longer than 2^31.
_MOST_TOKENS = 2**30


def tokens_since_fired(config: config_lib.ObjectiveConfig) -> Component:
  """Counts tokens since each latent fired; gives AuxK the dead ones."""

  def after(state, encoding, coefficients):
    del coefficients
    fired_M = jnp.any(encoding.active_BM > 0, axis=0)
    tokens_M = jnp.minimum(state['tokens_M'], _MOST_TOKENS)
    tokens_M += len(encoding.active_BM)
    return {'tokens_M': jnp.where(fired_M, 0, tokens_M)}

  def before(state, coefficients):
    dead_M = state['tokens_M'] >= config.dead_after_tokens
    return coefficients.replace(dead_M=dead_M)

  return Component(lambda M: {'tokens_M': jnp.zeros(M, 'int32')}, after, before)


# Averages over about 100 steps, as BatchTopK's authors' code.
_THRESHOLD_DECAY = 0.99


def selection_threshold(config: config_lib.ObjectiveConfig) -> Component:
  """Averages the smallest selected pre-activation (arXiv:2412.06410, Eq. 6).

  The threshold with which a BatchTopK SAE is used, in the units of training.
  """
  del config

  def after(state, encoding, coefficients):
    del coefficients
    cutoff, old = encoding.threshold, state['threshold']
    mean = _THRESHOLD_DECAY * old + (1 - _THRESHOLD_DECAY) * cutoff
    return {'threshold': jnp.where(old < 0, cutoff, mean)}

  return Component(lambda M: {'threshold': jnp.full((), -1.0)}, after)


def l0_controller(config: config_lib.ObjectiveConfig) -> Component:
  """Adapts lambda until L0 is `target_l0`, whatever lambda was at first.

  Integral control of log lambda by the log of L0 / target, of which a step
  takes the share `controller_rate`. Not from the paper.
  """

  def after(state, encoding, coefficients):
    l0 = jnp.mean(jnp.sum(encoding.active_BM, axis=-1))
    error = jnp.log(jnp.maximum(l0, 1e-3) / coefficients.target_l0)
    moved = config.controller_rate * jnp.clip(error, -1, 1)
    return {'log_factor': state['log_factor'] + moved}

  def before(state, coefficients):
    factor = jnp.exp(state['log_factor'])
    return coefficients.replace(
      sparsity_coeff=factor * coefficients.sparsity_coeff
    )

  return Component(lambda M: {'log_factor': jnp.zeros(())}, after, before)


def adaptive_bandwidth(config: config_lib.ObjectiveConfig) -> Component:
  """Gives each latent a bandwidth in which `window_rows` of a batch fall.

  The estimator's variance is that of a kernel density estimate from the rows in
  the window, so that rare latents want wider windows than frequent ones. A
  bandwidth stays within a factor of 8 of the config's. Not from the paper.
  """
  rate, largest = 0.01, jnp.log(8.0)

  def after(state, encoding, coefficients):
    distance_BM = jnp.abs(encoding.pre_BM - encoding.threshold[None])
    half_1M = jnp.reshape(coefficients.bandwidth, (1, -1)) / 2
    rows_M = jnp.sum(distance_BM < half_1M, axis=0)
    log_ratio_M = jnp.log((rows_M + 0.5) / (config.window_rows + 0.5))
    log_factor_M = state['log_factor_M'] - rate * jnp.clip(log_ratio_M, -1, 1)
    return {'log_factor_M': jnp.clip(log_factor_M, -largest, largest)}

  def before(state, coefficients):
    factor_M = jnp.exp(state['log_factor_M'])
    return coefficients.replace(bandwidth=factor_M * coefficients.bandwidth)

  return Component(lambda M: {'log_factor_M': jnp.zeros(M)}, after, before)


#: Components by the names that configs use.
COMPONENTS = {
  'tokens_since_fired': tokens_since_fired,
  'selection_threshold': selection_threshold,
  'l0_controller': l0_controller,
  'adaptive_bandwidth': adaptive_bandwidth,
}
#: Those that a config may name; the rest belong to architectures, or to all.
OPTIONAL = ('l0_controller', 'adaptive_bandwidth')
