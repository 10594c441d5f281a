"""All that a pass over text gathers; parts of the text merge to the whole.

Memory: with the sizes of `Settings` 11 kB a latent, be there many tokens or
few: 0.18 GB for 16,384 latents, 1.5 GB for 131,072. What waits to be merged in
adds up to 2.5 kB a latent, and the windows that are drawn without regard to a
latent 16 bytes for each firing in them (42 MB at an L0 of 40).
"""

from __future__ import annotations

import dataclasses
import os
import pathlib

import numpy as np

from jumprelu_jax import errors
from jumprelu_jax import seeds
from jumprelu_jax import whole
from jumprelu_jax.records import counts
from jumprelu_jax.records import firings as firings_lib
from jumprelu_jax.records import samples
from jumprelu_jax.records import windows


@dataclasses.dataclass(frozen=True)
class Settings:
  """How much is kept.

  Attributes:
    top: windows of a latent with its largest activations.
    sampled: windows of a latent drawn uniformly from all its firings.
    strata: quantiles that these are divided into.
    width: tokens of a window, no more than a sequence has.
    token_slots: tokens of a latent that are counted; see `counts.TokenCounts`.
    positions: of the sample that tells which latents fire together.
    background: windows drawn without regard to any latent.
    seed: of the samples.
  """

  top: int = 20
  sampled: int = 50
  strata: int = 5
  width: int = 32
  token_slots: int = 32
  positions: int = 65_536
  background: int = 512
  seed: int = 0

  def __post_init__(self):
    flags = {f'--{name}': value for name, value in vars(self).items()}
    seeds.check('--seed', flags.pop('--seed'))
    errors.check_least(1, flags)
    if self.sampled < self.strata:
      raise errors.InputError(
        f'--sampled={self.sampled} is too few for {self.strata} strata; give '
        f'{self.strata} or more.'
      )


class State:
  """What has been gathered so far; large, and so changed in place.

  Attributes:
    settings: how much is kept.
    totals: counts, sums, maxima and histograms.
    tokens: what each latent fires on.
    top: firings of each latent with the largest activations.
    uniform: a uniform sample of each latent's firings.
    positions: a uniform sample of positions, with what fires there.
    background: a uniform sample of windows, with what fires there.
  """

  def __init__(
    self, settings: Settings, num_latents: int, vocab_size: int, length: int
  ):
    if settings.width > length:
      raise errors.InputError(
        f'--width={settings.width} is longer than a sequence, {length} tokens; '
        'give fewer.'
      )
    self.settings = settings
    self.totals = counts.Totals(num_latents)
    self.tokens = counts.TokenCounts(
      num_latents, settings.token_slots, vocab_size
    )
    self.top = samples.Samples(num_latents, settings.top, settings.width)
    self.uniform = samples.Samples(
      num_latents, settings.sampled, settings.width
    )
    seed = settings.seed
    self.positions = windows.Windows(settings.positions, 1, seed)
    self.background = windows.Windows(settings.background, settings.width, seed)

  def add(self, firings: firings_lib.Firings) -> None:
    """Adds a batch; each sequence of the text is in one batch only."""
    self.totals.add(firings)
    self.tokens.add(firings)
    self.top.add(firings, *samples.largest_first(firings))
    self.uniform.add(firings, *samples.uniformly(firings, self.settings.seed))
    self.positions.add(firings)
    self.background.add(firings)

  def merge(self, other: State) -> None:
    """Adds what has been gathered, alike, from another part of the text.

    The result is as if the text had not been divided, but for rounding of sums
    and for token counts of latents that fire on more tokens than there are
    slots, which stay within their error.
    """
    for name, part in self._parts().items():
      part.merge(getattr(other, name))

  def settle(self) -> None:
    """Merges in what waits, and so frees its memory."""
    for part in self._parts().values():
      part.arrays()

  def save(self, path: str | os.PathLike, done: int) -> None:
    """Writes it to a file, with the number of sequences done."""
    arrays = {
      f'{name}.{key}': array
      for name, part in self._parts().items()
      for key, array in part.arrays().items()
    }
    with whole.replacing(path) as file:
      np.savez(file, done=np.int64(done), **arrays)

  def restore(self, path: str | os.PathLike) -> int:
    """Reads what `save` wrote, of alike settings; returns sequences done.

    Raises:
      errors.InputError: it is damaged.
    """
    try:
      # A checksum of each array is part of the format.
      with np.load(pathlib.Path(path), allow_pickle=False) as file:
        for name, part in self._parts().items():
          part.restore({key: file[f'{name}.{key}'] for key in part.arrays()})
        return int(file['done'])
    except errors.OF_DAMAGED_ARRAYS as error:
      raise errors.InputError(
        f'{path} is damaged ({type(error).__name__}: {error}); remove it and '
        'give the same command again: the pass starts over.'
      ) from error

  def _parts(self):
    return {k: part for k, part in vars(self).items() if k != 'settings'}
