"""Kernels of the straight-through estimators: densities of unit mass.

A kernel maps u = (pre - threshold) / bandwidth to a symmetric density. The
paper (arXiv:2407.14435, section 3) uses the rectangle and reports that the
shape matters little. At one bandwidth the shapes differ in width; `matched`
gives them the rectangle's standard deviation, so that only the shape differs.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import math

import jax
from jax import numpy as jnp

#: Same dtype out as in.
Kernel = Callable[[jax.Array], jax.Array]


def rectangle(u: jax.Array) -> jax.Array:
  """The paper's kernel: 1 where |u| < 1/2, else 0."""
  return (jnp.abs(u) < 0.5).astype(u.dtype)


def triangle(u: jax.Array) -> jax.Array:
  """1 - |u| where |u| < 1, else 0."""
  return jnp.maximum(0, 1 - jnp.abs(u))


def epanechnikov(u: jax.Array) -> jax.Array:
  """3/4 (1 - u^2) where |u| < 1, else 0."""
  return 0.75 * jnp.maximum(0, 1 - u**2)


def biweight(u: jax.Array) -> jax.Array:
  """15/16 (1 - u^2)^2 where |u| < 1, else 0."""
  return 15 / 16 * jnp.maximum(0, 1 - u**2) ** 2


def gaussian(u: jax.Array) -> jax.Array:
  """exp(-u^2 / 2) / sqrt(2 pi): a bandwidth is a standard deviation."""
  return jnp.exp(-(u**2) / 2) / math.sqrt(2 * math.pi)


# Standard deviations at bandwidth 1.
_DEVIATIONS = {
  rectangle: 1 / math.sqrt(12),
  triangle: 1 / math.sqrt(6),
  epanechnikov: 1 / math.sqrt(5),
  biweight: 1 / math.sqrt(7),
  gaussian: 1.0,
}


def matched(kernel: Kernel) -> Kernel:
  """Returns the kernel stretched to the rectangle's standard deviation."""
  ratio = _DEVIATIONS[kernel] / _DEVIATIONS[rectangle]
  return functools.partial(_stretched, kernel, ratio)


def _stretched(kernel, ratio, u):
  return ratio * kernel(ratio * u)


# Distances beyond which a kernel is 0.
_REACHES = {
  rectangle: 0.5,
  triangle: 1.0,
  epanechnikov: 1.0,
  biweight: 1.0,
  gaussian: math.inf,
}


def reach(kernel: Kernel) -> float:
  """Returns the |u| beyond which a kernel of `KERNELS` is 0."""
  if isinstance(kernel, functools.partial):  # matched
    plain, ratio = kernel.args
    return _REACHES[plain] / ratio
  return _REACHES[kernel]


_PLAIN = (rectangle, triangle, epanechnikov, biweight, gaussian)
#: Kernels by the names that configs use.
KERNELS: dict[str, Kernel] = {k.__name__: k for k in _PLAIN} | {
  f'{k.__name__}_matched': matched(k) for k in _PLAIN[1:]
}
