"""TopK (arXiv:2406.04093) and BatchTopK (arXiv:2412.06410) SAEs."""

from __future__ import annotations

import flax.struct
import jax
from jax import numpy as jnp

from jumprelu_jax import config as config_lib
from jumprelu_jax import selection
from jumprelu_jax.sae import maps
from jumprelu_jax.sae import released
from jumprelu_jax.sae import trained


@flax.struct.dataclass(kw_only=True)
class TopK(trained.Trained):
  """The k largest pre-activations of a row fire, if they are positive.

  Attributes:
    b_enc: encoder bias [M].
    k: static.
    is_approximate: static; selects by `lax.approx_max_k`. Released SAEs select
      exactly.
  """

  b_enc: jax.Array
  k: int = flax.struct.field(pytree_node=False)
  is_approximate: bool = flax.struct.field(pytree_node=False)

  def forward(self, x_BD, jump, bandwidth):
    """Returns the latents as training sees them."""
    del jump, bandwidth
    pre_BM = self.linear(x_BD)
    f_BM = selection.top_k(pre_BM, self.k, is_approximate=self.is_approximate)
    no_threshold = jnp.zeros(())
    return maps.Encoding(pre_BM, f_BM, maps.fired(f_BM), f_BM, no_threshold)

  def fold(self, scale, target_scale=None):
    """Returns the same function on raw activations."""
    out = scale if target_scale is None else target_scale
    return released.TopKSAE(
      b_enc=out * self.encoder_bias(),
      k=self.k,
      **self.scaled_maps(scale, target_scale),
    )


@flax.struct.dataclass(kw_only=True)
class BatchTopK(trained.Trained):
  """The k B largest positive pre-activations of a batch of B rows fire.

  What fires in a row depends on the other rows, so that in use a threshold
  takes the selection's place: the smallest pre-activation that fires, averaged
  over batches (`components.selection_threshold`).

  Attributes:
    b_enc: encoder bias [M].
    k: static; mean number that fires.
  """

  b_enc: jax.Array
  k: int = flax.struct.field(pytree_node=False)

  def forward(self, x_BD, jump, bandwidth):
    """Returns the latents as training sees them."""
    del jump, bandwidth
    pre_BM = self.linear(x_BD)
    positive_BM = jax.nn.relu(pre_BM)
    cutoff = selection.kth_largest(positive_BM, self.k * len(x_BD))
    f_BM = jnp.where(positive_BM >= cutoff, positive_BM, 0)
    return maps.Encoding(pre_BM, f_BM, maps.fired(f_BM), f_BM, cutoff)

  def fold_at(
    self, threshold: jax.Array, scale: float, target_scale: float | None = None
  ) -> released.SAE:
    """`fold` with one threshold for all latents, in the units of training."""
    threshold_M = jnp.full_like(self.b_enc, threshold)
    return self.fold_thresholds(
      self.encoder_bias(), threshold_M, scale, target_scale
    )


def init(
  key: jax.Array, widths: tuple[int, ...], config: config_lib.SAEConfig
) -> TopK:
  """Returns initial parameters; arguments as `trained.initial_maps`."""
  return TopK(
    b_enc=jnp.zeros(config.num_latents),
    k=config.k,
    is_approximate=config.selection == 'approximate',
    **trained.initial_maps(key, widths, config),
  )


def init_batch(
  key: jax.Array, widths: tuple[int, ...], config: config_lib.SAEConfig
) -> BatchTopK:
  """Returns initial parameters; arguments as `trained.initial_maps`."""
  return BatchTopK(
    b_enc=jnp.zeros(config.num_latents),
    k=config.k,
    **trained.initial_maps(key, widths, config),
  )
