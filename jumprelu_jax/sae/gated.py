"""Gated SAEs (arXiv:2404.16014), with the encoders tied as there."""

from __future__ import annotations

import flax.struct
import jax
from jax import numpy as jnp

from jumprelu_jax import config as config_lib
from jumprelu_jax import sparse
from jumprelu_jax.sae import maps
from jumprelu_jax.sae import trained


@flax.struct.dataclass(kw_only=True)
class Gated(trained.Trained):
  """One encoder decides what fires, a rescaled copy of it how strongly.

  f = 1[z + b_gate > 0] * ReLU(exp(r_mag) z + b_mag), z = (x - b_dec) W_enc
  (Eqs. 6 and 7).

  Attributes:
    b_gate: the gate's bias [M].
    r_mag: log of the ratio between the two encoders [M].
    b_mag: the magnitude's bias [M].
  """

  b_gate: jax.Array
  r_mag: jax.Array
  b_mag: jax.Array

  def encoder_bias(self):
    """Returns the part of both biases that the pre-encoder bias makes."""
    return jnp.zeros_like(self.b_gate) + self.shift()

  def counts(self, pre_BM, jump, bandwidth):
    """Where the gate is open."""
    del jump, bandwidth
    return pre_BM + jax.lax.stop_gradient(self.b_gate)[None] > 0

  def deciding(self, linear_BM):
    """The gate."""
    return linear_BM + self.b_gate[None]

  def forward(self, x_BD, jump, bandwidth, latents=sparse.EVERYWHERE):
    """The gate's positive part is what L1 penalties weigh (Eq. 8)."""
    del jump, bandwidth
    z = latents.linear(self, x_BD)
    gate = z + latents.each(self.b_gate)
    ratio, b_mag = latents.each(jnp.exp(self.r_mag)), latents.each(self.b_mag)
    f = latents.kept(jnp.where(gate > 0, jax.nn.relu(ratio * z + b_mag), 0))
    return maps.Encoding(
      latents,
      pre=gate,
      f=f,
      active=maps.fired(f),
      size=latents.kept(jax.nn.relu(gate)),
      threshold=self.threshold,
    )

  @property
  def threshold(self) -> jax.Array:
    """Thresholds [M] of the magnitudes that the gate amounts to (App. E).

    z + b_gate > 0 where exp(r_mag) z + b_mag > b_mag - exp(r_mag) b_gate; below
    zero it is the magnitude's ReLU that decides.
    """
    return jnp.maximum(self.b_mag - jnp.exp(self.r_mag) * self.b_gate, 0)

  def fold(self, scale, target_scale=None):
    """Also makes the gate a threshold: a tied Gated SAE is a JumpReLU SAE."""
    ratio_M = jnp.exp(self.r_mag)
    bias_M = ratio_M * self.encoder_bias() + self.b_mag
    magnitudes = self.replace(W_enc=self.W_enc * ratio_M[None])
    return magnitudes.fold_thresholds(
      bias_M, self.threshold, scale, target_scale
    )


@flax.struct.dataclass(kw_only=True)
class FreeNormGated(Gated):
  """`Gated` without a norm constraint, for RI-L1 (arXiv:2407.14435, App. D)."""

  has_unit_decoder = False


def init(
  key: jax.Array, widths: tuple[int, ...], config: config_lib.SAEConfig
) -> Gated:
  """Returns initial parameters; arguments as `trained.initial_maps`."""
  return _init(Gated, key, widths, config)


def init_free_norm(
  key: jax.Array, widths: tuple[int, ...], config: config_lib.SAEConfig
) -> FreeNormGated:
  """Returns `init`'s parameters without the constraint."""
  return _init(FreeNormGated, key, widths, config)


def _init(cls, key, widths, config):
  zeros_M = jnp.zeros(config.num_latents)
  return cls(
    b_gate=zeros_M,
    r_mag=zeros_M,
    b_mag=zeros_M,
    **trained.initial_maps(key, widths, config),
  )
