"""Matrix products, all of the package's that run on a device.

A platform's default precision is not float32's: a TPU rounds the operands of a
product to bfloat16, and a GPU may to TensorFloat-32. So the precision follows
the operands: float32 asks for 'highest', which is exact float32 everywhere, and
bfloat16, which loses nothing by the default, for the default. Gradients of a
product are products of the same precision.
"""

from __future__ import annotations

import jax
from jax import numpy as jnp


def einsum(spec: str, *operands: jax.Array, **options) -> jax.Array:
  """`jnp.einsum` of the operands' precision; options as there."""
  return jnp.einsum(spec, *operands, precision=_precision(operands), **options)


def matmul(a: jax.Array, b: jax.Array, **options) -> jax.Array:
  """`jnp.matmul` of the operands' precision; options as there."""
  return jnp.matmul(a, b, precision=_precision((a, b)), **options)


def _precision(operands):
  is_rounded = jnp.result_type(*operands) == 'bfloat16'
  return 'default' if is_rounded else 'highest'
