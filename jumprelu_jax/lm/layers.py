"""The pieces in which families differ in kind: norms and activations."""

from __future__ import annotations

from collections.abc import Callable
import functools

import jax
from jax import numpy as jnp

from jumprelu_jax.lm import architecture as architecture_lib


def plus(x, bias):
  """Adds a bias over the last axes, if there is one."""
  return x if bias is None else x + bias[(None,) * (x.ndim - bias.ndim)]


def soft_cap(x, cap):
  """Cap * tanh(x / cap); the identity where the model has no cap."""
  return x if cap is None else cap * jnp.tanh(x / cap)


def norm_of(architecture: architecture_lib.Architecture) -> Callable:
  """Returns norm(x, gain, bias) over the last axis."""
  return functools.partial(
    NORMS[architecture.norm], epsilon=architecture.norm_epsilon
  )


def _rms_norm(x, gain, bias, epsilon):
  """RMSNorm; rounds to the compute dtype before the gain, as Llama does."""
  del bias
  x32 = x.astype('float32')
  x32 *= jax.lax.rsqrt(jnp.mean(x32**2, -1, keepdims=True) + epsilon)
  return x32.astype(x.dtype) * _broadcast(gain, x)


def _rms_norm_plus_one(x, gain, bias, epsilon):
  """RMSNorm with gain 1 + w, all in float32, as Gemma does."""
  del bias
  x32 = x.astype('float32')
  x32 *= jax.lax.rsqrt(jnp.mean(x32**2, -1, keepdims=True) + epsilon)
  return (x32 * _broadcast(1 + gain.astype('float32'), x)).astype(x.dtype)


def _layer_norm(x, gain, bias, epsilon):
  """LayerNorm, in float32."""
  x32 = x.astype('float32')
  x32 -= jnp.mean(x32, -1, keepdims=True)
  x32 *= jax.lax.rsqrt(jnp.mean(x32**2, -1, keepdims=True) + epsilon)
  x32 = x32 * _broadcast(gain, x) + _broadcast(bias, x)
  return x32.astype(x.dtype)


def _broadcast(vector, x):
  return vector[(None,) * (x.ndim - 1)]


NORMS = {
  'rms': _rms_norm,
  'rms_plus_one': _rms_norm_plus_one,
  'layer': _layer_norm,
}
ACTIVATIONS = {
  'gelu': functools.partial(jax.nn.gelu, approximate=False),
  'gelu_tanh': functools.partial(jax.nn.gelu, approximate=True),
  'relu': jax.nn.relu,
  'silu': jax.nn.silu,
}
