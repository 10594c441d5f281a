"""Shards of a planted dictionary: what training is to find again."""

import functools

import numpy as np


class PlantedShards:
  """Sparse sums of unit directions; rows of norm `scale` in the mean square.

  With two widths a row is an input and, beside it, a target: the same latents,
  each with a direction for either. An even target's latents come in pairs of
  opposite input directions and one target direction: no linear map of the
  input, such as a transcoder's skip, tells anything of it. A shard is a
  function of its index.
  """

  def __init__(
    self,
    rows=64,
    shards=8,
    widths=(16,),
    latents=24,
    active=2,
    scales=None,
    is_even=False,
  ):
    self.rows_per_shard, self.widths = (rows,) * shards, widths
    self.scales = (1.0,) * len(widths) if scales is None else scales
    self._sparsity = (latents, active)
    rng = np.random.default_rng(0)
    #: Unit directions [M, D], of each width.
    self.directions = [
      unit_rows(rng.normal(size=(latents, width))) for width in widths
    ]
    if is_even:
      half = latents // 2
      input_MD, target_ME = self.directions
      input_MD[half:], target_ME[half:] = -input_MD[:half], target_ME[:half]

  def open(self, index):
    f_BM = activations(self.rows_per_shard[index], *self._sparsity, index)
    sides = [
      scale * f_BM @ directions_MD
      for scale, directions_MD in zip(self.scales, self.directions, strict=True)
    ]
    return np.concatenate(sides, axis=1).astype('float32')

  def recovery(self, W_dec):
    """Mean over the target's directions of the largest cosine with a row."""
    cosines = self.directions[-1] @ unit_rows(np.asarray(W_dec, float)).T
    return cosines.max(axis=1).mean()


@functools.cache
def activations(rows, latents, active, seed):
  """Latents of unit mean squared norm, of which so many are active a row."""
  rng = np.random.default_rng([1, seed])
  is_active_BM = rng.random((rows, latents)) < active / latents
  f_BM = rng.uniform(0.5, 1.5, (rows, latents)) * is_active_BM
  return f_BM / np.sqrt(active * (0.5**2 + 0.5 * 1.5 + 1.5**2) / 3)


def unit_rows(W_MD):
  return W_MD / np.linalg.norm(W_MD, axis=1, keepdims=True)
