"""What every SAE is made of: linear maps into latents and out of them."""

from __future__ import annotations

import flax.struct
import jax
from jax import numpy as jnp

from jumprelu_jax import ops
from jumprelu_jax import shapes
from jumprelu_jax import sparse


class Maps:
  """pre = x W_enc + bias, y_hat = f W_dec + b_dec [+ x W_skip].

  For row vectors. y is x itself for an SAE (arXiv:2407.14435, Eqs. 1 and 2),
  and another site's activation for a transcoder; only transcoders have a
  W_skip, and not all of them.
  """

  compute_dtype = 'float32'

  def linear(self, x_BD: jax.Array) -> jax.Array:
    """Returns x W_enc + bias, [B, M], float32."""
    shapes.check(x_BD=x_BD, W_enc_DM=self.W_enc)
    pre_BM = ops.matmul(x_BD, self.W_enc, self.compute_dtype)
    return pre_BM + self.encoder_bias()[None]

  def encoder_bias(self) -> jax.Array:
    """Returns what is added to x W_enc, [M]."""
    return self.b_enc

  def decode(self, f_BM: jax.Array) -> jax.Array:
    """Returns f W_dec + b_dec, float32."""
    shapes.check(f_BM=f_BM, W_dec_MD=self.W_dec)
    y_hat_BD = ops.matmul(f_BM, self.W_dec, self.compute_dtype)
    return y_hat_BD + self.b_dec[None]

  def skip(self, x_BD: jax.Array) -> jax.Array | float:
    """Returns what reaches the output past the latents: x W_skip, or 0."""
    if self.W_skip is None:
      return 0.0
    return ops.matmul(x_BD, self.W_skip, self.compute_dtype)

  def predict(self, f_BM: jax.Array, x_BD: jax.Array) -> jax.Array:
    """Returns y_hat_BD, float32, from the latents' activations and x."""
    return self.decode(f_BM) + self.skip(x_BD)

  def __call__(self, x_BD: jax.Array) -> jax.Array:
    """Returns y_hat_BD, float32."""
    return self.predict(self.encode(x_BD), x_BD)


class ThresholdMaps(Maps):
  """Maps between which each latent has a threshold: f = JumpReLU(pre)."""

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


@flax.struct.dataclass
class Encoding:
  """What a training step sees of the latents, float32.

  Arrays of latents are [B, M], or, on a support, in its slots, [K, B].

  Attributes:
    latents: which of the two, and what to do with such arrays.
    pre: what decides who fires, before any nonlinearity.
    f: activations; 0 in slots that do not count, as the next two.
    active: 1 where a latent fires; for JumpReLU with the estimator's gradient.
    size: what L1 penalties weigh: the activations, or what stands for them.
    threshold: what `pre` had to exceed: [M], a batch's cutoff [], or 0.
  """

  latents: sparse.Latents
  pre: jax.Array
  f: jax.Array
  active: jax.Array
  size: jax.Array
  threshold: jax.Array


def fired(f: jax.Array) -> jax.Array:
  """Returns 1 where a latent fires, without a gradient."""
  return jax.lax.stop_gradient(f > 0).astype('float32')


def unit_rows(W_MD: jax.Array) -> jax.Array:
  """Returns the matrix with every row scaled to unit L2 norm."""
  return W_MD / jnp.linalg.norm(W_MD, axis=-1, keepdims=True)
