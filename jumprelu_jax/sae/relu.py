"""ReLU SAEs with free decoder norms (Anthropic, April 2024)."""

from __future__ import annotations

import flax.struct
import jax
from jax import numpy as jnp

from jumprelu_jax import config as config_lib
from jumprelu_jax import sparse
from jumprelu_jax.sae import maps
from jumprelu_jax.sae import trained


@flax.struct.dataclass(kw_only=True)
class ReLU(trained.Trained):
  """f = ReLU(x W_enc + b_enc); released with thresholds of zero.

  Attributes:
    b_enc: encoder bias [M].
  """

  b_enc: jax.Array

  has_unit_decoder = False

  @property
  def threshold(self) -> jax.Array:
    """Zeros [M]."""
    return jnp.zeros_like(self.b_enc)

  def counts(self, pre_BM, jump, bandwidth):
    """What fires."""
    del jump, bandwidth
    return pre_BM > 0

  def forward(self, x_BD, jump, bandwidth, latents=sparse.EVERYWHERE):
    """Returns the latents as training sees them."""
    del jump, bandwidth
    pre = latents.linear(self, x_BD)
    f = latents.kept(jax.nn.relu(pre))
    return maps.Encoding(latents, pre, f, maps.fired(f), f, self.threshold)


def init(
  key: jax.Array, widths: tuple[int, ...], config: config_lib.SAEConfig
) -> ReLU:
  """Returns initial parameters; arguments as `trained.initial_maps`."""
  return ReLU(
    b_enc=jnp.zeros(config.num_latents),
    **trained.initial_maps(key, widths, config),
  )
