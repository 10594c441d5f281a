"""What the trained forms share: parameters, constraints, initial values.

Trained forms see activations of unit mean squared norm. `forward` is what a
training step differentiates, `constrain` is applied after each update, `fold`
leads to the released form.
"""

from __future__ import annotations

import flax.struct
import jax
from jax import numpy as jnp

from jumprelu_jax import config as config_lib
from jumprelu_jax import ops
from jumprelu_jax import sparse
from jumprelu_jax.sae import maps
from jumprelu_jax.sae import released

_he_uniform = jax.nn.initializers.he_uniform()


@flax.struct.dataclass(kw_only=True)
class Trained(maps.Maps):
  """Base of the trained forms; of a transcoder E, for D, is the target's size.

  Attributes:
    W_enc: encoder [D, M], float32, as all parameters.
    W_dec: decoder [M, E]; rows of unit norm if `has_unit_decoder`.
    b_dec: decoder bias [E]; also subtracted from the encoder's input when
      `use_pre_encoder_bias`.
    W_skip: past the latents [D, E]; None without.
    use_pre_encoder_bias: static; never for transcoders.
    compute_dtype: static; dtype of the inputs of matrix products.
    capacity: static; latents of a row that may count in a sparse step
      (`sparse.Support`); 0 has dense steps only.
    kind: static; the class's name. JAX 0.10 takes two dataclasses with the same
      static fields for one tree structure, whatever their classes, and so a
      program compiled for one may be run for the other; this tells them apart.
  """

  W_enc: jax.Array
  W_dec: jax.Array
  b_dec: jax.Array
  W_skip: jax.Array | None = None
  use_pre_encoder_bias: bool = flax.struct.field(pytree_node=False)
  compute_dtype: str = flax.struct.field(pytree_node=False)
  capacity: int = flax.struct.field(pytree_node=False, default=0)
  kind: str = flax.struct.field(pytree_node=False, default='')

  def __post_init__(self):
    object.__setattr__(self, 'kind', type(self).__name__)

  #: Of the class. Without it rows may have any norm, and `fold` scales them.
  has_unit_decoder = True

  def forward(
    self,
    x_BD: jax.Array,
    jump: ops.Jump,
    bandwidth: jax.Array | float,
    latents: sparse.Latents = sparse.EVERYWHERE,
  ) -> maps.Encoding:
    """Returns the latents as training sees them.

    Args:
      x_BD: activations, float32.
      jump: how jumps are differentiated; of no use to those that have none.
      bandwidth: of the estimator, a scalar or [M].
      latents: all, or those of a `support`.
    """
    raise NotImplementedError

  def support(
    self, x_BD: jax.Array, jump: ops.Jump, bandwidth: jax.Array | float
  ) -> sparse.Support:
    """Returns the latents that fire, or whose gradient may be other than 0."""
    pre_BM = self.linear(x_BD)
    counts_BM = self.counts(pre_BM, jump, bandwidth)
    return sparse.find(pre_BM, counts_BM, self.capacity)

  def counts(
    self, pre_BM: jax.Array, jump: ops.Jump, bandwidth: jax.Array | float
  ) -> jax.Array:
    """Returns True where a latent belongs to the `support`."""
    raise NotImplementedError

  def deciding(self, linear_BM: jax.Array) -> jax.Array:
    """Returns what decides who fires (`Encoding.pre`) from `linear`."""
    return linear_BM

  def predict_on(
    self, latents: sparse.Latents, f: jax.Array, x_BD: jax.Array
  ) -> jax.Array:
    """Returns y_hat_BD, float32, of activations in the layout of `latents`."""
    return latents.decode(self, f) + self.b_dec[None] + self.skip(x_BD)

  def encode(self, x_BD: jax.Array) -> jax.Array:
    """Returns the latents' activations f_BM as training sees them."""
    return self.forward(x_BD, ops.Jump(), 1.0).f

  def constrain(self):
    """Returns the SAE with decoder rows scaled back to unit norm, if any."""
    if not self.has_unit_decoder or self.W_dec is None:
      return self
    return self.replace(W_dec=maps.unit_rows(self.W_dec))

  def fold(
    self, scale: float, target_scale: float | None = None
  ) -> released.Released:
    """Folds scales and the pre-encoder bias away.

    Args:
      scale: what raw activations were divided by in training: the root of their
        mean squared norm.
      target_scale: the same of a transcoder's target.

    Returns:
      The same function on raw activations: fold(C)(x) = C * self(x / C).
    """
    return self.fold_thresholds(
      self.encoder_bias(), self.threshold, scale, target_scale
    )

  def fold_thresholds(self, bias_M, threshold_M, scale, target_scale):
    """`fold` for a bias and thresholds in the units of training."""
    scaled = self.scaled_maps(scale, target_scale)
    out = scale if target_scale is None else target_scale
    sae = released.SAE(
      b_enc=out * bias_M, threshold=out * threshold_M, **scaled
    )
    if self.has_unit_decoder:
      return sae
    return released.scale_decoder_norms(sae)

  def scaled_maps(self, scale, target_scale):
    """Latents are scaled as outputs are, so that decoder rows stay."""
    out = scale if target_scale is None else target_scale
    skip = None if self.W_skip is None else (out / scale) * self.W_skip
    return {
      'W_enc': (out / scale) * self.W_enc,
      'W_dec': self.W_dec,
      'b_dec': out * self.b_dec,
      'W_skip': skip,
    }

  def encoder_bias(self):
    """Returns what is added to x W_enc, [M]."""
    return self.b_enc + self.shift()

  def shift(self) -> jax.Array | float:
    """Returns what the pre-encoder bias adds to pre-activations, [M] or 0.

    (x - b_dec) W_enc = x W_enc - b_dec W_enc: a vector-matrix product, whose
    gradient is cheap; subtracting from x would cost a matrix product more.
    """
    if not self.use_pre_encoder_bias:
      return 0.0
    return -ops.matmul(self.b_dec[None], self.W_enc, 'float32')[0]


def initial_maps(
  key: jax.Array, widths: tuple[int, ...], config: config_lib.SAEConfig
) -> dict[str, object]:
  """Returns initial values of the fields of `Trained`; `key` is consumed.

  Gemma Scope (arXiv:2408.05147), section 3: decoder rows He-uniform, scaled to
  one norm; the encoder a copy of the decoder's transpose, to its own norm; no
  biases. A transcoder's encoder (two widths) is drawn on its own, and has no
  pre-encoder bias; its skip starts at zero.

  Args:
    key: a JAX random key.
    widths: (D,), or a transcoder's (D, E).
    config: sizes and norms.
  """
  M, (d_in, *rest) = config.num_latents, widths
  if not rest:
    W_dec = maps.unit_rows(_he_uniform(key, (M, d_in), 'float32'))
    W_enc = W_dec.T
  else:
    encoder_key, decoder_key = jax.random.split(key)
    W_dec = maps.unit_rows(_he_uniform(decoder_key, (M, rest[0]), 'float32'))
    W_enc = maps.unit_rows(_he_uniform(encoder_key, (M, d_in), 'float32')).T
  return {
    'W_enc': config.initial_encoder_norm * W_enc,
    'W_dec': config.initial_decoder_norm * W_dec,
    'b_dec': jnp.zeros(widths[-1]),
    'use_pre_encoder_bias': config.use_pre_encoder_bias and not rest,
    'compute_dtype': config.compute_dtype,
    'capacity': max(config.capacity, 0),
  }
