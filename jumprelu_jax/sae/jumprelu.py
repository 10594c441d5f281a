"""JumpReLU, the paper's architecture (arXiv:2407.14435), and variants."""

from __future__ import annotations

import math

import flax.struct
import jax
from jax import numpy as jnp

from jumprelu_jax import config as config_lib
from jumprelu_jax import kernels
from jumprelu_jax import sparse
from jumprelu_jax.sae import maps
from jumprelu_jax.sae import trained


class _Jumps(maps.ThresholdMaps):
  """The forward pass of what has thresholds to train."""

  def counts(self, pre_BM, jump, bandwidth):
    """What fires, or is inside the window."""
    reach_M = kernels.reach(jump.kernel) * bandwidth
    low_M = jax.lax.stop_gradient(self.threshold - reach_M)
    return jax.nn.relu(pre_BM) >= low_M[None]

  def forward(self, x_BD, jump, bandwidth, latents=sparse.EVERYWHERE):
    """Returns the latents as training sees them."""
    pre, threshold_M = latents.linear(self, x_BD), self.threshold
    width_M = jnp.broadcast_to(jnp.asarray(bandwidth), threshold_M.shape)
    at = (
      jax.nn.relu(pre),  # see `maps.ThresholdMaps`
      latents.each(threshold_M),
      latents.each(jax.lax.stop_gradient(width_M)),
      jump.kernel,
    )
    f = latents.kept(jump.estimator.jumprelu(*at))
    active = latents.kept(jump.estimator.step(*at))
    return maps.Encoding(latents, pre, f, active, f, threshold_M)


@flax.struct.dataclass(kw_only=True)
class JumpReLU(_Jumps, trained.Trained):
  """A JumpReLU SAE in training (Eqs. 4 and 8).

  Attributes:
    b_enc: encoder bias [M].
    log_threshold: log of the thresholds [M]; the log keeps them positive.
  """

  b_enc: jax.Array
  log_threshold: jax.Array

  @property
  def threshold(self) -> jax.Array:
    """The thresholds [M], positive, float32."""
    return jnp.exp(self.log_threshold)


@flax.struct.dataclass(kw_only=True)
class FreeNormJumpReLU(JumpReLU):
  """`JumpReLU` whose decoder rows may have any norm (Anthropic's recipes).

  Objectives that weigh activations by decoder norms are the same for every
  scaling of a row and its latent; folding scales rows to unit norm.
  """

  has_unit_decoder = False


@flax.struct.dataclass(kw_only=True)
class RawThresholdJumpReLU(_Jumps, trained.Trained):
  """`JumpReLU` that trains its thresholds themselves, kept at or above zero.

  Differs from the paper, which trains their logarithm: Adam then moves every
  threshold by the same amount a step rather than by the same ratio.
  """

  b_enc: jax.Array
  threshold: jax.Array

  def constrain(self):
    """Also returns thresholds to zero that an update made negative."""
    constrained = super().constrain()
    return constrained.replace(threshold=jnp.maximum(self.threshold, 0))


def init(
  key: jax.Array, widths: tuple[int, ...], config: config_lib.SAEConfig
) -> JumpReLU:
  """Returns initial parameters; arguments as `trained.initial_maps`."""
  return _init(JumpReLU, key, widths, config)


def init_free_norm(
  key: jax.Array, widths: tuple[int, ...], config: config_lib.SAEConfig
) -> FreeNormJumpReLU:
  """Returns `init`'s parameters without the constraint."""
  return _init(FreeNormJumpReLU, key, widths, config)


def init_raw_threshold(
  key: jax.Array, widths: tuple[int, ...], config: config_lib.SAEConfig
) -> RawThresholdJumpReLU:
  """Returns `init`'s parameters with the thresholds themselves."""
  M = config.num_latents
  return RawThresholdJumpReLU(
    b_enc=jnp.zeros(M),
    threshold=jnp.full(M, config.initial_threshold, 'float32'),
    **trained.initial_maps(key, widths, config),
  )


def _init(cls, key, widths, config):
  M, log_threshold = config.num_latents, math.log(config.initial_threshold)
  return cls(
    b_enc=jnp.zeros(M),
    log_threshold=jnp.full(M, log_threshold, 'float32'),
    **trained.initial_maps(key, widths, config),
  )
