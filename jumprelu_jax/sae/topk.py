"""TopK (arXiv:2406.04093) and BatchTopK (arXiv:2412.06410) SAEs."""

from __future__ import annotations

import flax.struct
import jax
from jax import numpy as jnp

from jumprelu_jax import config as config_lib
from jumprelu_jax import selection
from jumprelu_jax import sparse
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

  def support(self, x_BD, jump, bandwidth):
    """The k largest of each row, whatever the capacity."""
    del jump, bandwidth
    pre_BM = self.linear(x_BD)
    known_BM = jax.lax.stop_gradient(pre_BM)
    _, index_BK = selection.largest(known_BM, self.k, self.is_approximate)
    return sparse.all_of(pre_BM, index_BK)

  def forward(self, x_BD, jump, bandwidth, latents=sparse.EVERYWHERE):
    """Returns the latents as training sees them."""
    del jump, bandwidth
    pre = latents.linear(self, x_BD)
    if isinstance(latents, sparse.Support):  # they are selected
      f = jax.nn.relu(pre)
    else:
      f = selection.top_k(pre, self.k, is_approximate=self.is_approximate)
    return maps.Encoding(latents, pre, f, maps.fired(f), f, jnp.zeros(()))

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

  def cutoff(self, pre_BM: jax.Array) -> jax.Array:
    """Returns the least pre-activation of a batch that fires, a scalar."""
    positive_BM = jax.nn.relu(jax.lax.stop_gradient(pre_BM))
    return selection.kth_largest(positive_BM, self.k * len(pre_BM))

  def counts(self, pre_BM, jump, bandwidth):
    """What fires."""
    del jump, bandwidth
    return (pre_BM > 0) & (pre_BM >= self.cutoff(pre_BM))

  def forward(self, x_BD, jump, bandwidth, latents=sparse.EVERYWHERE):
    """Returns the latents as training sees them."""
    del jump, bandwidth
    pre = latents.linear(self, x_BD)
    known_BM = pre if latents.known_BM is None else latents.known_BM
    positive, least = jax.nn.relu(pre), self.cutoff(known_BM)
    f = latents.kept(jnp.where(positive >= least, positive, 0))
    return maps.Encoding(latents, pre, f, maps.fired(f), f, least)

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
