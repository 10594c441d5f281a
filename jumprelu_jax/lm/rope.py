"""Rotary position embeddings, and how families stretch them to long contexts.

Frequencies follow `transformers`, which computes them in float32: at position
10,000 the rounding of a frequency is worth a thousandth of a turn.
"""

from __future__ import annotations

import dataclasses
import math

import jax
from jax import numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class LinearScaling:
  """Positions divided by a factor (Gemma 3's global layers)."""

  factor: float

  def apply(self, frequency_K: np.ndarray) -> np.ndarray:
    """Returns scaled frequencies, float32."""
    return frequency_K / np.float32(self.factor)


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
  """Llama 3.1's: low frequencies divided, high ones kept, a ramp between.

  Attributes:
    factor: low frequencies are divided by it.
    low_freq_factor: frequencies are low below this many turns in the original
      context.
    high_freq_factor: and high above this many.
    original_max_position_embeddings: the original context.
  """

  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_max_position_embeddings: int

  def apply(self, frequency_K: np.ndarray) -> np.ndarray:
    """Returns scaled frequencies, float32."""
    turns_K = (
      self.original_max_position_embeddings * frequency_K / (2 * math.pi)
    )
    kept_K = (turns_K - self.low_freq_factor) / (
      self.high_freq_factor - self.low_freq_factor
    )
    kept_K = np.clip(kept_K, 0, 1)
    return ((1 - kept_K) / self.factor + kept_K).astype('float32') * frequency_K


@dataclasses.dataclass(frozen=True)
class Rope:
  """One table of rotations.

  Attributes:
    theta: base of the wavelengths.
    dim: coordinates of a head that are rotated, the first ones; even.
    scaling: for long contexts, or None.
  """

  theta: float
  dim: int
  scaling: LinearScaling | Llama3Scaling | None = None

  def frequencies(self) -> np.ndarray:
    """Returns angles per position, [dim / 2], float32."""
    exponent_K = np.arange(0, self.dim, 2, dtype=np.float32) / self.dim
    frequency_K = np.float32(1) / np.float32(self.theta) ** exponent_K
    return self.scaling.apply(frequency_K) if self.scaling else frequency_K


def table(ropes: tuple[Rope, ...], length: int) -> tuple[jax.Array, jax.Array]:
  """Returns (cos, sin) of the angles, float32 [ropes, L, dim / 2]."""
  frequency_RK = jnp.asarray(np.stack([r.frequencies() for r in ropes]))
  position_L = jnp.arange(length, dtype='float32')
  angle_RLK = position_L[None, :, None] * frequency_RK[:, None]
  return jnp.cos(angle_RLK), jnp.sin(angle_RLK)


def rotate(x_BLHK: jax.Array, cos_LK: jax.Array, sin_LK: jax.Array):
  """Rotates the pairs (i, i + dim / 2) of every head; the rest passes."""
  cos, sin = (t[None, :, None].astype(x_BLHK.dtype) for t in (cos_LK, sin_LK))
  dim = 2 * cos_LK.shape[-1]
  a, b = jnp.split(x_BLHK[..., :dim], 2, axis=-1)
  rotated = [a * cos - b * sin, b * cos + a * sin]
  return jnp.concatenate([*rotated, x_BLHK[..., dim:]], axis=-1)
