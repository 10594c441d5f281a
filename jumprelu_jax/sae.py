"""Sparse autoencoders: what is trained, and what is released.

`JumpReLU` holds the parameters in the form in which they are trained: on
activations scaled to unit mean squared norm, with log-thresholds and a
pre-encoder bias. `SAE` is the form in which they are used and shared: raw
activations in, everything folded into five plain arrays (Gemma Scope's). Both
are pytrees with `encode` and `decode`; `fold` leads from one to the other.
"""

from __future__ import annotations

import math

import flax.struct
import jax
from jax import numpy as jnp

from jumprelu_jax import ops
from jumprelu_jax import shapes


class _JumpReLUMaps:
  """Encoder and decoder of everything that has a threshold for each latent.

  f = JumpReLU_threshold(x W_enc + bias), x_hat = f W_dec + b_dec
  (arXiv:2407.14435, Eqs. 1, 2, 8, for row vectors).
  """

  compute_dtype = 'float32'

  def linear(self, x_BD: jax.Array) -> jax.Array:
    """Returns x W_enc + bias, [B, M], float32."""
    shapes.check(x_BD=x_BD, W_enc_DM=self.W_enc)
    pre_BM = ops.matmul(x_BD, self.W_enc, self.compute_dtype)
    return pre_BM + self.encoder_bias()[None]

  def pre_activations(self, x_BD: jax.Array) -> jax.Array:
    """Returns ReLU(pre_BM), float32.

    The ReLU is the paper's (pseudo-code of version 2 on). It changes no output,
    as thresholds are positive, but once a threshold is below half a bandwidth
    every negative pre-activation counts in its window, which pushes it back up.
    """
    return jax.nn.relu(self.linear(x_BD))

  def encode(self, x_BD: jax.Array) -> jax.Array:
    """Returns the latents' activations f_BM, float32."""
    pre_BM = self.pre_activations(x_BD)
    return jnp.where(ops.is_active(pre_BM, self.threshold), pre_BM, 0)

  def decode(self, f_BM: jax.Array) -> jax.Array:
    """Returns reconstructions x_hat_BD, float32."""
    shapes.check(f_BM=f_BM, W_dec_MD=self.W_dec)
    x_hat_BD = ops.matmul(f_BM, self.W_dec, self.compute_dtype)
    return x_hat_BD + self.b_dec[None]

  def encoder_bias(self) -> jax.Array:
    """Returns what is added to x W_enc, [M]."""
    return self.b_enc


@flax.struct.dataclass
class SAE(_JumpReLUMaps):
  """A folded SAE: raw activations in, raw reconstructions out.

  Attributes:
    W_enc: encoder [D, M], float32, as all of them.
    b_enc: encoder bias [M].
    W_dec: decoder [M, D]; a row is a latent's direction, of unit norm.
    b_dec: decoder bias [D].
    threshold: thresholds [M], in units of raw activations.
  """

  W_enc: jax.Array
  b_enc: jax.Array
  W_dec: jax.Array
  b_dec: jax.Array
  threshold: jax.Array


class _Trained(_JumpReLUMaps):
  """What the trained forms share, whichever way they hold their thresholds."""

  def constrain(self):
    """Returns the SAE with decoder rows scaled back to unit norm."""
    return self.replace(W_dec=unit_rows(self.W_dec))

  def fold(self, scale: jax.Array | float) -> SAE:
    """Folds the scale and the pre-encoder bias away.

    Args:
      scale: what raw activations were divided by in training: the root of their
        mean squared norm.

    Returns:
      The same function on raw activations: fold(C).decode(fold(C).encode(x)) =
      C * decode(encode(x / C)).
    """
    return SAE(
      W_enc=self.W_enc,
      b_enc=scale * self.encoder_bias(),
      W_dec=self.W_dec,
      b_dec=scale * self.b_dec,
      threshold=scale * self.threshold,
    )

  def encoder_bias(self):
    # (x - b_dec) W_enc = x W_enc - b_dec W_enc: a vector-matrix product, whose
    # gradient is cheap; subtracting from x would cost a matrix product more.
    if not self.use_pre_encoder_bias:
      return self.b_enc
    return self.b_enc - ops.matmul(self.b_dec, self.W_enc, 'float32')


@flax.struct.dataclass
class JumpReLU(_Trained):
  """A JumpReLU SAE in training; activations have unit mean squared norm.

  Attributes:
    W_enc: encoder [D, M], float32, as all parameters.
    b_enc: encoder bias [M].
    W_dec: decoder [M, D], rows of unit norm.
    b_dec: decoder bias [D]; also subtracted from the encoder's input when
      `use_pre_encoder_bias`.
    log_threshold: log of the thresholds [M]; the log keeps them positive.
    use_pre_encoder_bias: static.
    compute_dtype: static; dtype of the inputs of matrix products.
  """

  W_enc: jax.Array
  b_enc: jax.Array
  W_dec: jax.Array
  b_dec: jax.Array
  log_threshold: jax.Array
  use_pre_encoder_bias: bool = flax.struct.field(pytree_node=False)
  compute_dtype: str = flax.struct.field(pytree_node=False)

  @property
  def threshold(self) -> jax.Array:
    """The thresholds [M], positive, float32."""
    return jnp.exp(self.log_threshold)


@flax.struct.dataclass
class RawThresholdJumpReLU(_Trained):
  """`JumpReLU` that trains its thresholds themselves, kept at or above zero.

  Differs from the paper, which trains their logarithm: Adam then moves every
  threshold by the same amount a step rather than by the same ratio.
  """

  W_enc: jax.Array
  b_enc: jax.Array
  W_dec: jax.Array
  b_dec: jax.Array
  threshold: jax.Array
  use_pre_encoder_bias: bool = flax.struct.field(pytree_node=False)
  compute_dtype: str = flax.struct.field(pytree_node=False)

  def constrain(self):
    """Also returns thresholds to zero that an update made negative."""
    constrained = super().constrain()
    return constrained.replace(threshold=jnp.maximum(self.threshold, 0))


@flax.struct.dataclass
class FreeNormJumpReLU(_Trained):
  """`JumpReLU` whose decoder rows may have any norm (Anthropic's recipes).

  Objectives that weigh activations by decoder norms are the same for every
  scaling of a row and its latent; folding scales rows to unit norm.
  """

  W_enc: jax.Array
  b_enc: jax.Array
  W_dec: jax.Array
  b_dec: jax.Array
  log_threshold: jax.Array
  use_pre_encoder_bias: bool = flax.struct.field(pytree_node=False)
  compute_dtype: str = flax.struct.field(pytree_node=False)

  @property
  def threshold(self) -> jax.Array:
    """The thresholds [M], positive, float32."""
    return jnp.exp(self.log_threshold)

  def constrain(self):
    """Returns the SAE as it is."""
    return self

  def fold(self, scale: jax.Array | float) -> SAE:
    """Also scales decoder rows to unit norm, and latents to match."""
    return fold_decoder_norms(super().fold(scale))


def fold_decoder_norms(sae: SAE) -> SAE:
  """Returns the same function with decoder rows of unit norm.

  A latent's activations are multiplied by the norm of its row, and so are its
  encoder column, bias and threshold; a row of zeros stays.
  """
  norm_M = jnp.linalg.norm(sae.W_dec, axis=-1)
  norm_M = jnp.where(norm_M > 0, norm_M, 1)
  return sae.replace(
    W_enc=sae.W_enc * norm_M[None],
    b_enc=sae.b_enc * norm_M,
    W_dec=sae.W_dec / norm_M[:, None],
    threshold=sae.threshold * norm_M,
  )


def init_jumprelu(
  key: jax.Array,
  d_model: int,
  num_latents: int,
  *,
  initial_threshold: float,
  use_pre_encoder_bias: bool = True,
  compute_dtype: str = 'float32',
) -> JumpReLU:
  """Returns initial parameters; `key` is consumed.

  Gemma Scope (arXiv:2408.05147), section 3: decoder rows He-uniform, scaled to
  unit norm; the encoder a copy of the decoder's transpose; zero biases; one
  initial threshold for all latents.
  """
  he_uniform = jax.nn.initializers.he_uniform()
  W_dec = unit_rows(he_uniform(key, (num_latents, d_model), 'float32'))
  return JumpReLU(
    W_enc=W_dec.T,
    b_enc=jnp.zeros(num_latents),
    W_dec=W_dec,
    b_dec=jnp.zeros(d_model),
    log_threshold=jnp.full(num_latents, math.log(initial_threshold), 'float32'),
    use_pre_encoder_bias=use_pre_encoder_bias,
    compute_dtype=compute_dtype,
  )


def init_raw_threshold_jumprelu(
  key: jax.Array, d_model: int, num_latents: int, **options
) -> RawThresholdJumpReLU:
  """Returns `init_jumprelu`'s parameters with the thresholds themselves."""
  log_form = init_jumprelu(key, d_model, num_latents, **options)
  return RawThresholdJumpReLU(
    W_enc=log_form.W_enc,
    b_enc=log_form.b_enc,
    W_dec=log_form.W_dec,
    b_dec=log_form.b_dec,
    threshold=log_form.threshold,
    use_pre_encoder_bias=log_form.use_pre_encoder_bias,
    compute_dtype=log_form.compute_dtype,
  )


def init_free_norm_jumprelu(
  key: jax.Array, d_model: int, num_latents: int, **options
) -> FreeNormJumpReLU:
  """Returns `init_jumprelu`'s parameters with decoder rows of norm 0.1.

  The encoder stays as large, so that thresholds mean what they mean there.
  """
  unit = init_jumprelu(key, d_model, num_latents, **options)
  fields = {name: getattr(unit, name) for name in unit.__dataclass_fields__}
  return FreeNormJumpReLU(**fields | {'W_dec': 0.1 * unit.W_dec})


def unit_rows(W_MD: jax.Array) -> jax.Array:
  """Returns the matrix with every row scaled to unit L2 norm."""
  return W_MD / jnp.linalg.norm(W_MD, axis=-1, keepdims=True)
