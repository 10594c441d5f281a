"""Whether a training step's numbers are finite, found within the step.

Nothing of a weight's size is read for it: what is not finite shows in arrays
that the step has anyway. A weight of the encoder does in the pre-activations of
any one row; a row of a decoder of unit norm in its product with its gradient,
which the projection needs; whatever reaches a latent's or an output's gradient
in the sum over rows that is its bias's; and the rest in the loss. One thing
shows a step late: a number of the optimizer's state, in the encoder's weight
that it made.
"""

from __future__ import annotations

from typing import Any
from typing import TypeVar

import flax.struct
import jax
from jax import numpy as jnp

from jumprelu_jax import sparse
from jumprelu_jax.sae import maps

PyTree = TypeVar('PyTree')

#: What was wrong with a step, as its metric 'fault' says; 0 is nothing.
BATCH, WEIGHTS, LOSS = 1, 2, 3


@flax.struct.dataclass
class Health:
  """What a run's state remembers of its bad steps.

  Attributes:
    first_bad_step: the first step whose update was left out, int32 scalar; -1
      if none was.
    bad_count: how many there were, int32 scalar.
  """

  first_bad_step: jax.Array
  bad_count: jax.Array

  def after(self, step: jax.Array, fault: jax.Array, most: int) -> Health:
    """Returns what is remembered after a step; once stopped, nothing more."""
    is_bad = (fault > 0) & ~self.is_stopped(most)
    is_first = is_bad & (self.first_bad_step < 0)
    return Health(
      jnp.where(is_first, step, self.first_bad_step),
      self.bad_count + is_bad,
    )

  def is_stopped(self, most: int) -> jax.Array:
    """True once there were more bad steps than a run may leave out."""
    return self.bad_count > most


def begin() -> Health:
  """Returns the health of a run before its first step."""
  return Health(jnp.full((), -1, 'int32'), jnp.zeros((), 'int32'))


def of_latents(encoding: maps.Encoding) -> jax.Array:
  """True if the pre-activations of a row are finite: a bool, free.

  Over a mesh a row of each part of the batch, so that none has to move.
  """
  latents = encoding.latents
  is_support = isinstance(latents, sparse.Support)
  pre_BM = latents.known_BM if is_support else encoding.pre
  mesh = jax.sharding.get_abstract_mesh()
  parts = 1 if mesh.empty else mesh.shape['data']
  B, M = pre_BM.shape
  return is_finite(pre_BM.reshape(parts, B // parts, M)[:, 0])


def is_finite(tree: PyTree) -> jax.Array:
  """True if all arrays of a tree are finite, a bool."""
  # Sums of floats, which travel over a mesh together with the loss.
  counts = [
    jnp.sum(jnp.where(jnp.isfinite(leaf), 0.0, 1.0))
    for leaf in jax.tree.leaves(tree)
  ]
  return sum(counts, jnp.zeros(())) == 0


def small(tree: PyTree) -> list[Any]:
  """Returns the leaves that are no matrices."""
  return [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim < 2]


def fault(
  batch: PyTree, weights_are_finite: jax.Array, loss: PyTree
) -> jax.Array:
  """Returns what is wrong with a step, int32: BATCH, WEIGHTS, LOSS or 0.

  Args:
    batch: the rows.
    weights_are_finite: as far as one can tell if the batch is finite.
    loss: the loss and what tells of its gradients.
  """
  return jnp.where(
    is_finite(batch),
    jnp.where(weights_are_finite, jnp.where(is_finite(loss), 0, LOSS), WEIGHTS),
    BATCH,
  )


def choose(goes_on: jax.Array | bool, new: PyTree, old: PyTree) -> PyTree:
  """Returns the new arrays, or the old ones bit for bit.

  Elementwise, so that the compiler does it where `new` is computed.
  """
  return jax.tree.map(lambda n, o: jnp.where(goes_on, n, o), new, old)
