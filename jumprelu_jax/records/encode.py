"""Text → what fires: the language model up to the site, then the encoder.

Runs on the mesh, sequences over 'data' and latents over 'latent'. To the host
go only slots: of each row the largest activations, as many as any row has.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools

import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from jumprelu_jax import errors
from jumprelu_jax import sharding
from jumprelu_jax.lm import outliers
from jumprelu_jax.lm import sites
from jumprelu_jax.lm import transformer
from jumprelu_jax.records import firings as firings_lib
from jumprelu_jax.sae import released
from jumprelu_jax.text import packing

# Activations that a device holds at a time, dense, before they are put in
# slots: 256 MB, of which there are a few copies.
_ACTIVATIONS = 2**26
_MOST_SEQUENCES = 64
_FIRST_CAPACITY = 64


def firings(
  model: transformer.Transformer,
  sae: released.Released,
  where: sites.Site,
  tokens_NL: np.ndarray,
  mesh: jax.sharding.Mesh,
  first: int = 0,
  stop: int | None = None,
  limits: outliers.Limits = (),
) -> Iterator[firings_lib.Firings]:
  """Yields what fires in some text, a batch of sequences at a time.

  Args:
    model: the language model, on the mesh; only its layers up to the site run.
    sae: raw activations in.
    where: what it reads.
    tokens_NL: packed text.
    mesh: of this process alone.
    first: the sequence to begin with.
    stop: the sequence to stop before; None reads all that follow.
    limits: of norms; a position beyond them is no text, and nothing fires
      there. The model has the layers of their sites.

  Raises:
    errors.InputError: the mesh does not divide the latents.
  """
  num_latents, (N, L) = sae.W_enc.shape[1], tokens_NL.shape
  stop = N if stop is None else stop
  check_mesh(mesh, num_latents)
  encoder = _Encoder(model, _placed(sae, mesh), where, mesh, limits)
  rows = sequences_per_batch(mesh, num_latents, L)
  # The devices are at work on one batch while the host is on the one before.
  waiting = None
  for start in range(first, stop, rows):
    tokens_BL = np.asarray(tokens_NL[start : min(start + rows, stop)])
    batch = encoder.start(start, tokens_BL, rows)
    if waiting is not None:
      yield encoder.finish(waiting)
    waiting = batch
  if waiting is not None:
    yield encoder.finish(waiting)


def check_mesh(mesh: jax.sharding.Mesh, num_latents: int) -> None:
  """Raises InputError unless a mesh divides the latents."""
  parts = mesh.shape['latent']
  if num_latents % parts:
    raise errors.InputError(
      f"{num_latents} latents are not divisible by mesh axis 'latent'={parts}; "
      'use a divisor, such as 1.'
    )


def sequences_per_batch(
  mesh: jax.sharding.Mesh, num_latents: int, length: int
) -> int:
  """Returns how many sequences are encoded together."""
  data, latent = mesh.shape['data'], mesh.shape['latent']
  rows = _ACTIVATIONS * latent // (num_latents * length)
  return data * min(max(rows, 1), _MOST_SEQUENCES)


@dataclasses.dataclass(frozen=True)
class _Batch:
  """Sequences, padded ones too, and what the devices were asked for."""

  first: int
  tokens_BL: np.ndarray
  padded_BL: np.ndarray
  is_text_BL: np.ndarray
  found: tuple[jax.Array, ...]


class _Encoder:
  """Runs batches; the slots of a row become more where one needs more."""

  def __init__(self, model, sae, where, mesh, limits):
    self._of = model, sae
    self._where, self._mesh, self._limits = where, mesh, limits
    self._layout = sharding.of_batch(mesh)
    self._capacity = _FIRST_CAPACITY

  def start(self, first, tokens_BL, rows):
    """Returns a batch that the devices have begun with."""
    model = self._of[0]
    padded_BL = packing.pad_rows(tokens_BL, rows, model.architecture.pad_id)
    is_text_BL = packing.is_text(padded_BL, model.architecture.special_ids)
    if self._limits:
      placed_BL = jax.device_put(padded_BL, self._layout)
      within_BL = outliers.are_within(model, placed_BL, self._limits)
      is_text_BL &= np.asarray(within_BL)
    found = self._run(padded_BL, is_text_BL)
    return _Batch(first, tokens_BL, padded_BL, is_text_BL, found)

  def finish(self, batch):
    """Returns the firings of a batch."""
    value_NK, latent_NK, most = jax.device_get(batch.found)
    while most > value_NK.shape[1] // self._mesh.shape['latent']:
      self._capacity = max(self._capacity, 2 ** int(most - 1).bit_length())
      found = self._run(batch.padded_BL, batch.is_text_BL)
      value_NK, latent_NK, most = jax.device_get(found)
    count = batch.tokens_BL.size
    return firings_lib.by_latent(
      batch.first,
      batch.tokens_BL,
      batch.is_text_BL[: len(batch.tokens_BL)],
      value_NK[:count],
      latent_NK[:count],
      self._of[1].W_enc.shape[1],
    )

  def _run(self, *arrays_BL):
    placed = [jax.device_put(array, self._layout) for array in arrays_BL]
    return _fire(*self._of, *placed, self._where, self._capacity, self._mesh)


@functools.partial(jax.jit, static_argnames=('where', 'capacity', 'mesh'))
def _fire(model, sae, tokens_BL, is_text_BL, where, capacity, mesh):
  """Returns activations [N, K], latents [N, K] and the slots needed."""
  (x_BLD,) = transformer.tap(model, tokens_BL, (where,))
  x_ND = x_BLD.reshape(-1, x_BLD.shape[-1]).astype('float32')
  f_NM = sharding.on(mesh, sae.encode)(x_ND)
  spec = P('data', 'latent')
  value_NK, latent_NK, most = jax.shard_map(
    functools.partial(_in_slots, capacity=capacity),
    mesh=mesh,
    in_specs=spec,
    out_specs=(spec, spec, spec),
  )(jnp.where(is_text_BL.reshape(-1, 1), f_NM, 0))
  return value_NK, latent_NK, jnp.max(most)


def _in_slots(f_NM, capacity):
  """The largest activations of each row, of the latents of one device."""
  M = f_NM.shape[1]
  value_NK, latent_NK = jax.lax.top_k(f_NM, min(capacity, M))
  latent_NK += jax.lax.axis_index('latent') * M
  most = jnp.max(jnp.sum(f_NM > 0, axis=1, dtype='int32'))
  return value_NK, latent_NK, most.reshape(1, 1)


def _placed(sae, mesh):
  return jax.device_put(sae, sharding.of_tree(mesh, sae))
