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

  def forward(self, x_BD, jump, bandwidth):
    """Returns the latents as training sees them."""
    del jump, bandwidth

    def find(pre_BM, capacity):
      del capacity  # a row has k
      _, index_BK = selection.largest(pre_BM, self.k, self.is_approximate)
      return sparse.all_of(index_BK)

    pre_BM, support = self.linear_on_support(x_BD, find)
    if support is None:
      f_BM = selection.top_k(pre_BM, self.k, is_approximate=self.is_approximate)
    else:
      f_KB = jax.nn.relu(support.values(pre_BM))
      f_BM = support.spread(f_KB, pre_BM.shape[1])
    return maps.Encoding(
      pre_BM, f_BM, maps.fired(f_BM), f_BM, jnp.zeros(()), support
    )

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

    def cutoff(pre_BM):
      positive_BM = jax.nn.relu(pre_BM)
      return selection.kth_largest(positive_BM, self.k * len(x_BD))

    def find(pre_BM, capacity):
      counts_BM = (pre_BM > 0) & (pre_BM >= cutoff(pre_BM))
      return sparse.find(counts_BM, capacity)

    pre_BM, support = self.linear_on_support(x_BD, find)
    positive_BM = jax.nn.relu(pre_BM)
    least = cutoff(pre_BM)
    f_BM = jnp.where(positive_BM >= least, positive_BM, 0)
    return maps.Encoding(pre_BM, f_BM, maps.fired(f_BM), f_BM, least, support)

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
